"""Compressing layer after layer: each is solved in the network as compressed so far."""
