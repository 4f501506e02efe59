"""Rows of layers while a network runs: hooks, masks, loaders, and the proof on the first batch."""
