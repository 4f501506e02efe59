"""A store's rows to moments, kept in the store and used again while the rows they came from are the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dalr_stream.numerics.folding import FoldRule, HoldoutRule, SplitMoments
from dalr_stream.numerics.moments import Moments
from dalr_stream.storage.activations import ActivationStore, locked
from dalr_stream.storage.archive import load_moments, moments_path, provenance_of, save_moments
from dalr_stream.streaming.accumulate import Threads, accumulate_layer, fold_rule
from dalr_stream.workflow.progress import Progress, Silent

TRAINING, HELDOUT = "training", "heldout"


@dataclass(frozen=True, slots=True)
class LayerMoments(Mapping[str, Moments]):
    """Moments of the training rows, by layer name; `heldout` has those of the rows kept apart, where any were."""

    training: Mapping[str, Moments]
    heldout: Mapping[str, Moments] = field(default_factory=dict)

    @classmethod
    def of(cls, split: Mapping[str, SplitMoments]) -> LayerMoments:
        """Gather the two parts of each layer; a part of no rows is left out."""
        return cls(
            {name: part.training for name, part in split.items()},
            {name: part.heldout for name, part in split.items() if part.heldout.count},
        )

    def __getitem__(self, layer: str) -> Moments:
        return self.training[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.training)

    def __len__(self) -> int:
        return len(self.training)


def accumulate(
    store: str | Path,
    *,
    domain: str,
    layers: Sequence[str] | None = None,
    holdout: HoldoutRule | None = None,
    threads: Threads | None = None,
    progress: Progress | None = None,
) -> LayerMoments:
    """Return the moments of one domain of a store, by layer.

    Moments made before from the same rows by the same rule are read from the store, also when the activations
    themselves were deleted; otherwise they are accumulated and kept there. `holdout` keeps a seeded share of the
    samples apart: a tenth by default. The same rows give the same bits, whatever the batches and the workers.

    Raises StoreNotFoundError, StoreDamagedError, StoreError for a domain that is not complete.
    """
    opened = ActivationStore(store)
    holdout = holdout or HoldoutRule()
    names = list(opened.domain(domain).layers) if layers is None else list(layers)
    progress = progress or Silent()
    split = {name: _layer(opened, domain, name, holdout, threads or Threads(), progress) for name in names}
    return LayerMoments.of(split)


def moments_provenance(store: ActivationStore, domain: str, layer: str, rule: FoldRule) -> dict[str, Any]:
    """Return all that decides a record's bits: equal provenance, equal moments."""
    return {
        "network": store.manifest.network.fingerprint,
        "rows": store.domain(domain).fingerprint(layer),
        "rule": {**asdict(rule), "tile_rows": rule.tile_rows, "lanes": rule.lanes},
    }


def save_split(root: Path, domain: str, layer: str, split: SplitMoments, provenance: Mapping[str, Any]) -> None:
    """Keep both parts of a layer's moments in the store."""
    for part, moments in ((HELDOUT, split.heldout), (TRAINING, split.training)):
        save_moments(moments_path(root, domain, layer, part), moments, provenance)


def _layer(
    store: ActivationStore, domain: str, layer: str, holdout: HoldoutRule, threads: Threads, progress: Progress
) -> SplitMoments:
    provenance = moments_provenance(store, domain, layer, fold_rule(store, domain, layer, holdout))
    paths = [moments_path(store.root, domain, layer, part) for part in (TRAINING, HELDOUT)]
    if all(provenance_of(path) == provenance for path in paths):
        progress.note(f"moments of '{layer}' on '{domain}' are up to date")
        return SplitMoments(*(load_moments(path) for path in paths))
    rows = store.rows(domain, layer).rows
    with progress.track(f"accumulate {domain}/{layer}", rows, "rows") as advance:
        split = accumulate_layer(store, domain, layer, holdout=holdout, threads=threads, tile_done=advance)
    with locked(store.root):
        save_split(store.root, domain, layer, split, provenance)
    return split
