"""What stories are made of: networks, conditional distributions, gates, experts."""
