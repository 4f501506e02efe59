"""Matrix code: rank-k updates on BLAS, eigenvalues and ridge systems of semi-definite matrices, precision."""
