"""What the paper reports, computed anew: Table 1."""
