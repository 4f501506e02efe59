"""What a store holds, in one line and as a table: from its manifest and the heads of its records, not their arrays."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

from dalr_stream.errors import StoreError
from dalr_stream.storage.contents import DomainRecord
from dalr_stream.storage.manifest import Manifest
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.moments import moments_count, moments_path
from dalr_stream.storage.rows import rows_exist
from dalr_stream.storage.schema import PARTS


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One layer on one domain."""

    domain: str
    layer: str
    samples: int
    rows: int
    features: int
    activations: str
    """`captured`, `not finished`, `none kept`, `merged` from other stores, or `those of` another layer."""
    training: int | None
    """Rows behind the training moments; None where there are none, or they cannot be read: `verify` says which."""
    heldout: int | None


@dataclass(frozen=True, slots=True)
class StoreSummary:
    """Every layer of every domain; prints as one line, shows as a table in a notebook."""

    root: Place
    network: str
    """Fingerprint of the network that the store was made from."""
    layers: tuple[LayerSummary, ...]

    @classmethod
    def of(cls, root: Place, manifest: Manifest) -> StoreSummary:
        """Look at the store at `root`, whose manifest was read before."""
        layers = (line for name, domain in manifest.domains.items() for line in _layers(root, name, domain))
        return cls(root, manifest.network.fingerprint, tuple(layers))

    def __str__(self) -> str:
        domains = list(dict.fromkeys(line.domain for line in self.layers))
        parts = []
        for domain in domains:
            here = [line for line in self.layers if line.domain == domain]
            solved = sum(line.training is not None for line in here)
            layers = f"{len(here)} layer" + "s" * (len(here) != 1)
            parts.append(f"{domain} ({here[0].samples:,} samples, {layers}, {solved} with moments)")
        return f"store '{self.root}' of network {self.network[:12]}: {', '.join(parts) or 'nothing yet'}"

    def _repr_html_(self) -> str:
        head = ("domain", "layer", "samples", "rows", "features", "activations", "training rows", "held-out rows")
        lines = [
            (
                line.domain,
                line.layer,
                f"{line.samples:,}",
                f"{line.rows:,}",
                f"{line.features:,}",
                line.activations,
                _count(line.training),
                _count(line.heldout),
            )
            for line in self.layers
        ]
        rows = "".join(_row("td", cells) for cells in lines)
        return f"<table><caption>{html.escape(str(self))}</caption>{_row('th', head)}{rows}</table>"


def _layers(root: Place, name: str, domain: DomainRecord) -> Iterator[LayerSummary]:
    for layer in domain.names:
        rows, home = domain.layers[domain.home(layer)], domain.home(layer)
        if home != layer:
            activations = f"those of {home}"
        elif domain.shards:
            activations = f"merged from {len(domain.shards)} stores"
        elif not domain.complete:
            activations = "not finished"
        else:
            activations = "captured" if rows_exist(root, name, layer) else "none kept"
        training, heldout = (_moments(root, name, home, part) for part in PARTS)
        samples = domain.samples if domain.complete else domain.committed_samples
        yield LayerSummary(name, layer, samples, rows.rows, rows.features, activations, training, heldout)


def _moments(root: Place, domain: str, layer: str, part: str) -> int | None:
    try:
        return moments_count(moments_path(root, domain, layer, part))
    except StoreError:
        return None


def _count(rows: int | None) -> str:
    return "none" if rows is None else f"{rows:,}"


def _row(cell: str, texts: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{cell}>{html.escape(text)}</{cell}>" for text in texts) + "</tr>"
