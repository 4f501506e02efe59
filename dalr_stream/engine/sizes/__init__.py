"""Sizes for all layers within a budget, and the family of each: predicted, then measured whole."""
