"""A smaller network from factors and selections, and the proof that it is what it should be."""
