"""Statistics of networks that run block by block."""
