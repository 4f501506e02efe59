"""Low-rank factors of a layer: truncated SVD and DALR, from moments, from outputs alone or from stored rows."""
