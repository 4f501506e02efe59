"""Where the numbers of a report, and a saved network, come from."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from dalr_stream._version import __version__
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.workflow.runfile.config import RunConfig
from dalr_stream.workflow.runfile.sections import SolveSection
from dalr_stream.workflow.steps.sizes.compression import Compression

_LIBRARIES = ("numpy", "scipy", "dask", "zarr", "torch")


def provenance(config: RunConfig, store: StoreView) -> dict[str, Any]:
    """Return versions, fingerprints, row counts and the resolved configuration, as plain values."""
    versions = {"dalr_stream": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in _LIBRARIES}
    return {
        "versions": versions,
        "network": {"fingerprint": store.manifest.network.fingerprint},
        "domains": {name: _domain(config, store, name) for name in config.domains},
        "configuration": config.plain(),
    }


def saved_provenance(config: RunConfig, store: StoreView, compression: Compression, fingerprint: str) -> dict[str, Any]:
    """Return the same for a network that is saved, with what took the place of its layers, the date and the stamp."""
    section = config.solve
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "layers": {name: f"{layer.method.label}, size {layer.size}" for name, layer in compression.layers.items()},
        "sizes": compression.rule,
        "ridge": _ridge_in_words(section),
        "made_from": fingerprint,
        **provenance(config, store),
    }


def _ridge_in_words(section: SolveSection) -> str:
    own = section.ridge_absolute
    if isinstance(own, dict):
        named = (f"{method.label} {value}, absolute" for method, value in own.items())
        return "; ".join((f"{section.ridge}, relative", *named))
    return f"{section.ridge}, relative" if own is None else f"{own}, absolute"


def _domain(config: RunConfig, store: StoreView, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"batches_from": config.domains[name].batches}
    record = store.manifest.domains.get(name)
    if record is not None:
        facts |= {"samples": record.samples, "batches": len(record.batches), "choice": record.choice}
        facts["rows"] = {layer: record.layers[record.home(layer)].rows for layer in record.names}
        facts["fingerprints"] = {layer: record.fingerprint(layer)[:16] for layer in record.names}
        facts["shared"] = dict(record.shared)
    return facts
