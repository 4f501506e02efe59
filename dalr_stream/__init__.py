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

from dalr_stream._version import __version__

if TYPE_CHECKING:
    from dalr_stream.engine.accumulate import accumulate as accumulate
    from dalr_stream.engine.capture import capture as capture
    from dalr_stream.engine.cross import accumulate_cross as accumulate_cross
    from dalr_stream.engine.direct import accumulate_into as accumulate_into
    from dalr_stream.engine.direct import accumulate_stream as accumulate_stream
    from dalr_stream.engine.merge import merge as merge
    from dalr_stream.engine.output_errors import output_errors as output_errors
    from dalr_stream.engine.sequential import compress_sequentially as compress_sequentially
    from dalr_stream.engine.sequential_pass import LayerChoice as LayerChoice
    from dalr_stream.errors import DalrStreamError as DalrStreamError
    from dalr_stream.network.capture.row_rule import RowRule as RowRule
    from dalr_stream.network.layers.spec import LayerSpec as LayerSpec
    from dalr_stream.network.layers.spec import select_layers as select_layers
    from dalr_stream.network.layers.spec import unsupported_layers as unsupported_layers
    from dalr_stream.network.layers.spec import weights_of as weights_of
    from dalr_stream.network.measure.profile import profile as profile
    from dalr_stream.network.saved.checkpoint import load as load
    from dalr_stream.network.saved.checkpoint import save as save
    from dalr_stream.network.structure.graph import Structure as Structure
    from dalr_stream.network.structure.readers import with_readers as with_readers
    from dalr_stream.network.surgery.compress import compress as compress
    from dalr_stream.network.training.finetune import FineTuning as FineTuning
    from dalr_stream.network.training.finetune import finetune as finetune
    from dalr_stream.numerics.linalg.precision import Precision as Precision
    from dalr_stream.numerics.lowrank.factors import ChannelSelection as ChannelSelection
    from dalr_stream.numerics.lowrank.factors import LowRankFactors as LowRankFactors
    from dalr_stream.numerics.lowrank.from_rows import dalr_from_rows as dalr_from_rows
    from dalr_stream.numerics.lowrank.ridge import Ridge as Ridge
    from dalr_stream.numerics.lowrank.ridge import Variant as Variant
    from dalr_stream.numerics.lowrank.solvers import dalr as dalr
    from dalr_stream.numerics.lowrank.solvers import dalr_sweep as dalr_sweep
    from dalr_stream.numerics.lowrank.solvers import truncated_svd as truncated_svd
    from dalr_stream.numerics.methods import Method as Method
    from dalr_stream.numerics.resampling.jackknife import jackknife_low_rank as jackknife_low_rank
    from dalr_stream.numerics.resampling.jackknife import jackknife_selection as jackknife_selection
    from dalr_stream.numerics.resampling.ridge_choice import choose_ridge as choose_ridge
    from dalr_stream.numerics.resampling.sufficiency import sufficiency as sufficiency
    from dalr_stream.numerics.rows.sampling import HoldoutRule as HoldoutRule
    from dalr_stream.numerics.rows.streams import Side as Side
    from dalr_stream.numerics.selection.greedy import Form as Form
    from dalr_stream.numerics.selection.greedy import by_max as by_max
    from dalr_stream.numerics.selection.greedy import by_mean as by_mean
    from dalr_stream.numerics.selection.greedy import momasp as momasp
    from dalr_stream.numerics.selection.greedy import spectral as spectral
    from dalr_stream.numerics.selection.shift import MomentShift as MomentShift
    from dalr_stream.numerics.selection.shift import diff as diff
    from dalr_stream.numerics.statistics.cross import CrossMoments as CrossMoments
    from dalr_stream.numerics.statistics.moments import Moments as Moments
    from dalr_stream.storage.stored_rows import StoredRows as StoredRows
    from dalr_stream.storage.writer import ActivationStore as ActivationStore
    from dalr_stream.streaming.cluster import Cluster as Cluster
    from dalr_stream.streaming.cluster import open_cluster as open_cluster
    from dalr_stream.streaming.folding import Folding as Folding
    from dalr_stream.streaming.folding import Threads as Threads

_HOME_OF = {
    "ActivationStore": "storage.writer",
    "ChannelSelection": "numerics.lowrank.factors",
    "Cluster": "streaming.cluster",
    "CrossMoments": "numerics.statistics.cross",
    "DalrStreamError": "errors",
    "FineTuning": "network.training.finetune",
    "Folding": "streaming.folding",
    "Form": "numerics.selection.greedy",
    "HoldoutRule": "numerics.rows.sampling",
    "LayerChoice": "engine.sequential_pass",
    "LayerSpec": "network.layers.spec",
    "LowRankFactors": "numerics.lowrank.factors",
    "Method": "numerics.methods",
    "MomentShift": "numerics.selection.shift",
    "Moments": "numerics.statistics.moments",
    "Precision": "numerics.linalg.precision",
    "Ridge": "numerics.lowrank.ridge",
    "RowRule": "network.capture.row_rule",
    "Side": "numerics.rows.streams",
    "StoredRows": "storage.stored_rows",
    "Structure": "network.structure.graph",
    "Threads": "streaming.folding",
    "Variant": "numerics.lowrank.ridge",
    "accumulate": "engine.accumulate",
    "accumulate_cross": "engine.cross",
    "accumulate_into": "engine.direct",
    "accumulate_stream": "engine.direct",
    "by_max": "numerics.selection.greedy",
    "by_mean": "numerics.selection.greedy",
    "capture": "engine.capture",
    "choose_ridge": "numerics.resampling.ridge_choice",
    "compress": "network.surgery.compress",
    "compress_sequentially": "engine.sequential",
    "dalr": "numerics.lowrank.solvers",
    "dalr_from_rows": "numerics.lowrank.from_rows",
    "dalr_sweep": "numerics.lowrank.solvers",
    "diff": "numerics.selection.shift",
    "finetune": "network.training.finetune",
    "jackknife_low_rank": "numerics.resampling.jackknife",
    "jackknife_selection": "numerics.resampling.jackknife",
    "load": "network.saved.checkpoint",
    "merge": "engine.merge",
    "momasp": "numerics.selection.greedy",
    "open_cluster": "streaming.cluster",
    "output_errors": "engine.output_errors",
    "profile": "network.measure.profile",
    "save": "network.saved.checkpoint",
    "select_layers": "network.layers.spec",
    "spectral": "numerics.selection.greedy",
    "sufficiency": "numerics.resampling.sufficiency",
    "truncated_svd": "numerics.lowrank.solvers",
    "unsupported_layers": "network.layers.spec",
    "weights_of": "network.layers.spec",
    "with_readers": "network.structure.readers",
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
    "unsupported_layers",
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
