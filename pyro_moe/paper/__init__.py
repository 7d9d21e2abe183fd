"""What the paper reports, computed anew: its table, its figures, epochs and seconds."""
