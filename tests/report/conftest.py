"""Puts this folder on the path (`synthetic_results`)."""
