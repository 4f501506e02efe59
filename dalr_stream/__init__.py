"""Streaming activation statistics, and networks compressed with them on a target domain.

A network's activations stream through the engine once; what stays is a small additive record of their first and second
moments, from which low-rank factors (DALR and its baselines) and selections (spectral pruning, MoMaSP) are solved for
every rank and size, without the data and without the network:

    import dalr_stream as ds
    layers = ds.select_layers(model, ["classifier.[03]"])
    ds.capture(model, batches, layers, "birds.zarr", domain="target")
    moments = ds.accumulate("birds.zarr", domain="target")
    factors = ds.dalr(weight, bias, moments["classifier.0"])
    small = ds.compress(model, {"classifier.0": factors.at_rank(256)})

Public names are loaded when they are first used, so importing the package imports neither torch nor dask nor zarr.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalr_stream.errors import DalrStreamError as DalrStreamError
    from dalr_stream.network.checkpoint import load as load
    from dalr_stream.network.checkpoint import save as save
    from dalr_stream.network.finetune import FineTuning as FineTuning
    from dalr_stream.network.finetune import finetune as finetune
    from dalr_stream.network.graph import Structure as Structure
    from dalr_stream.network.layers import LayerSpec as LayerSpec
    from dalr_stream.network.layers import left_out as left_out
    from dalr_stream.network.layers import select_layers as select_layers
    from dalr_stream.network.layers import weights_of as weights_of
    from dalr_stream.network.profile import profile as profile
    from dalr_stream.network.readers import with_readers as with_readers
    from dalr_stream.network.rows import RowRule as RowRule
    from dalr_stream.network.surgery import compress as compress
    from dalr_stream.numerics.cross import CrossMoments as CrossMoments
    from dalr_stream.numerics.from_rows import dalr_from_rows as dalr_from_rows
    from dalr_stream.numerics.holdout import HoldoutRule as HoldoutRule
    from dalr_stream.numerics.jackknife import jackknife_low_rank as jackknife_low_rank
    from dalr_stream.numerics.jackknife import jackknife_selection as jackknife_selection
    from dalr_stream.numerics.lowrank import dalr as dalr
    from dalr_stream.numerics.lowrank import dalr_sweep as dalr_sweep
    from dalr_stream.numerics.lowrank import truncated_svd as truncated_svd
    from dalr_stream.numerics.methods import Method as Method
    from dalr_stream.numerics.moments import Moments as Moments
    from dalr_stream.numerics.precision import Precision as Precision
    from dalr_stream.numerics.ridge import Ridge as Ridge
    from dalr_stream.numerics.ridge import Variant as Variant
    from dalr_stream.numerics.ridge_choice import choose_ridge as choose_ridge
    from dalr_stream.numerics.selection import Form as Form
    from dalr_stream.numerics.selection import by_max as by_max
    from dalr_stream.numerics.selection import by_mean as by_mean
    from dalr_stream.numerics.selection import momasp as momasp
    from dalr_stream.numerics.selection import spectral as spectral
    from dalr_stream.numerics.shift import MomentShift as MomentShift
    from dalr_stream.numerics.shift import diff as diff
    from dalr_stream.numerics.sides import Side as Side
    from dalr_stream.numerics.solution import ChannelSelection as ChannelSelection
    from dalr_stream.numerics.solution import LowRankFactors as LowRankFactors
    from dalr_stream.numerics.sufficiency import sufficiency as sufficiency
    from dalr_stream.storage.activations import ActivationStore as ActivationStore
    from dalr_stream.storage.stored_rows import StoredRows as StoredRows
    from dalr_stream.streaming.accumulate import Folding as Folding
    from dalr_stream.streaming.accumulate import Threads as Threads
    from dalr_stream.streaming.cluster import Cluster as Cluster
    from dalr_stream.streaming.cluster import open_cluster as open_cluster
    from dalr_stream.workflow.accumulate import accumulate as accumulate
    from dalr_stream.workflow.capture import capture as capture
    from dalr_stream.workflow.cross import accumulate_cross as accumulate_cross
    from dalr_stream.workflow.direct import accumulate_into as accumulate_into
    from dalr_stream.workflow.direct import accumulate_stream as accumulate_stream
    from dalr_stream.workflow.in_turn import LayerChoice as LayerChoice
    from dalr_stream.workflow.merge import merge as merge
    from dalr_stream.workflow.output_errors import output_errors as output_errors
    from dalr_stream.workflow.sequential import compress_sequentially as compress_sequentially

__version__ = "0.1.0"

_HOME_OF = {
    "ActivationStore": "storage.activations",
    "ChannelSelection": "numerics.solution",
    "Cluster": "streaming.cluster",
    "CrossMoments": "numerics.cross",
    "DalrStreamError": "errors",
    "FineTuning": "network.finetune",
    "Folding": "streaming.accumulate",
    "Form": "numerics.selection",
    "HoldoutRule": "numerics.holdout",
    "LayerChoice": "workflow.in_turn",
    "LayerSpec": "network.layers",
    "LowRankFactors": "numerics.solution",
    "Method": "numerics.methods",
    "MomentShift": "numerics.shift",
    "Moments": "numerics.moments",
    "Precision": "numerics.precision",
    "Ridge": "numerics.ridge",
    "RowRule": "network.rows",
    "Side": "numerics.sides",
    "StoredRows": "storage.stored_rows",
    "Structure": "network.graph",
    "Threads": "streaming.accumulate",
    "Variant": "numerics.ridge",
    "accumulate": "workflow.accumulate",
    "accumulate_cross": "workflow.cross",
    "accumulate_into": "workflow.direct",
    "accumulate_stream": "workflow.direct",
    "by_max": "numerics.selection",
    "by_mean": "numerics.selection",
    "capture": "workflow.capture",
    "choose_ridge": "numerics.ridge_choice",
    "compress": "network.surgery",
    "compress_sequentially": "workflow.sequential",
    "dalr": "numerics.lowrank",
    "dalr_from_rows": "numerics.from_rows",
    "dalr_sweep": "numerics.lowrank",
    "diff": "numerics.shift",
    "finetune": "network.finetune",
    "jackknife_low_rank": "numerics.jackknife",
    "jackknife_selection": "numerics.jackknife",
    "left_out": "network.layers",
    "load": "network.checkpoint",
    "merge": "workflow.merge",
    "momasp": "numerics.selection",
    "open_cluster": "streaming.cluster",
    "output_errors": "workflow.output_errors",
    "profile": "network.profile",
    "save": "network.checkpoint",
    "select_layers": "network.layers",
    "spectral": "numerics.selection",
    "sufficiency": "numerics.sufficiency",
    "truncated_svd": "numerics.lowrank",
    "weights_of": "network.layers",
    "with_readers": "network.readers",
}

__all__ = [
    "ActivationStore",
    "ChannelSelection",
    "Cluster",
    "CrossMoments",
    "DalrStreamError",
    "FineTuning",
    "Folding",
    "Form",
    "HoldoutRule",
    "LayerChoice",
    "LayerSpec",
    "LowRankFactors",
    "Method",
    "MomentShift",
    "Moments",
    "Precision",
    "Ridge",
    "RowRule",
    "Side",
    "StoredRows",
    "Structure",
    "Threads",
    "Variant",
    "__version__",
    "accumulate",
    "accumulate_cross",
    "accumulate_into",
    "accumulate_stream",
    "by_max",
    "by_mean",
    "capture",
    "choose_ridge",
    "compress",
    "compress_sequentially",
    "dalr",
    "dalr_from_rows",
    "dalr_sweep",
    "diff",
    "finetune",
    "jackknife_low_rank",
    "jackknife_selection",
    "left_out",
    "load",
    "merge",
    "momasp",
    "open_cluster",
    "output_errors",
    "profile",
    "save",
    "select_layers",
    "spectral",
    "sufficiency",
    "truncated_svd",
    "weights_of",
    "with_readers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'dalr_stream' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"dalr_stream.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
