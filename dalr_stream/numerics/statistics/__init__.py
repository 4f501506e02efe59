"""Moments: first and second moments of rows, how they are folded, merged and grouped."""
