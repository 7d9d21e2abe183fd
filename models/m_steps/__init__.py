"""M-steps: maximum-likelihood estimates from weighted rows, as functions of tensors."""
