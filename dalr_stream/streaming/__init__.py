"""Tiles on disk to moments, scheduled by dask: what a run will cost, and the run itself."""
