"""Streaming activation statistics, and networks compressed with them on a target domain.

A network's activations stream through the engine once; what stays is a small additive record of their first and second
moments, from which low-rank factors (DALR and its baselines) and selections (spectral pruning, MoMaSP) are solved for
every rank and size, without the data and without the network:

    import dalr_stream as ds
    layers = ds.watch(model, ["classifier.[03]"], example=batch)
    statistics = ds.accumulate(model, batches, layers, store="birds.zarr")
    factors = ds.dalr(statistics["classifier.0"], ridge=1e-3)
    small = ds.compress(model, {"classifier.0": factors.at_rank(256)})

    store = ds.open_store("birds.zarr")    # on any machine, without network or torch
    nodes = ds.spectral(store.layer("classifier.0"))

What stands here is what most need; `ds.numerics` and `ds.network` have more, `ds.errors` every failure. Public names
are loaded when they are first used, so importing the package imports neither torch nor dask nor zarr.
"""

from dalr_stream._front import attach
from dalr_stream._renamed import RENAMED
from dalr_stream._version import __version__ as __version__

__getattr__, __dir__, __all__ = attach(__name__, __file__, RENAMED)
