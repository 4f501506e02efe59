"""Arrays to records: moments, low-rank factors and selections, with numpy and scipy alone.

Nothing here opens a file, starts a scheduler, logs, or draws an unseeded random number, and nothing here imports
torch, dask or zarr: whoever has the moments can solve.
"""

from dalr_stream._front import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
