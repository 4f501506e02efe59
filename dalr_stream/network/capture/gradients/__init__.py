"""Gradients of a loss by what layers give, sample by sample."""
