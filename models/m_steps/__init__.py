"""M-steps: the likeliest parameters of each part given weighted rows, as pure functions."""
