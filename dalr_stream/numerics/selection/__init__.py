"""Nodes to keep: spectral pruning, MoMaSP and ranking, and how the others are restored from them."""
