"""Rows on their way to moments: what streams are called, how rows become tiles, which samples are held out."""
