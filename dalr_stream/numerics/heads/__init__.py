"""Attention heads with fewer dimensions: what queries with keys, and values with the output, are together."""
