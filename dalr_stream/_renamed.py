"""What became of the public names of 0.1 that are not in the stub any more: each works until 0.3, with a warning."""

from __future__ import annotations

from dalr_stream._front import Renamed

RENAMED = {
    "ActivationStore": Renamed("dalr_stream.open_store(path)", "dalr_stream.storage.store", "ActivationStore"),
    "Cluster": Renamed("what dalr_stream.open_cluster() gives", "dalr_stream.streaming.cluster", "Cluster"),
    "StoredRows": Renamed("dalr_stream.open_store(path).rows(layer)", "dalr_stream.storage.store", "StoredRows"),
    "accumulate_into": Renamed(
        "dalr_stream.accumulate(model, batches, layers, store=path)", "dalr_stream.engine.direct", "accumulate_into"
    ),
    "accumulate_stream": Renamed(
        "dalr_stream.accumulate(model, batches, layers)", "dalr_stream.engine.direct", "accumulate_stream"
    ),
    "by_max": Renamed("dalr_stream.prune_by_max", "dalr_stream.numerics.selection.ranking", "prune_by_max"),
    "by_mean": Renamed("dalr_stream.prune_by_mean", "dalr_stream.numerics.selection.ranking", "prune_by_mean"),
    "left_out": Renamed("dalr_stream.unsupported_layers", "dalr_stream.network.layers.spec", "unsupported_layers"),
    "with_readers": Renamed(
        "dalr_stream.watch(model, patterns, example=batch)", "dalr_stream.network.structure.readers", "with_readers"
    ),
} | {
    name: Renamed(f"{home}.{name}", home, name)
    for home, names in {
        "dalr_stream.network": ("LayerSpec", "Structure", "select_layers", "weights_of"),
        "dalr_stream.numerics": (
            "CrossMoments",
            "Form",
            "MomentShift",
            "Precision",
            "Side",
            "Variant",
            "choose_ridge",
            "dalr_from_rows",
            "dalr_sweep",
            "diff",
            "jackknife_low_rank",
            "jackknife_selection",
            "sufficiency",
        ),
    }.items()
    for name in names
}
