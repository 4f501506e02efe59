"""One pass of a network over its batches, into a sink, with a word about how it resumes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Any

from torch import nn

from dalr_stream.network.capture.hooks import ToRows, capture_rows
from dalr_stream.network.capture.loaders import can_resume
from dalr_stream.network.capture.row_rule import RowRule
from dalr_stream.network.layers.spec import LayerSpec, to_host
from dalr_stream.numerics.rows.tiling import RowSink
from dalr_stream.progress import Progress


def one_pass(  # noqa: PLR0913  # what capture_rows takes, and how to tell of it
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[LayerSpec],
    sink: RowSink,
    *,
    rows: RowRule | None,
    to_rows: ToRows = to_host,
    title: str,
    progress: Progress,
) -> None:
    """Send the rows of `layers` to `sink`; see `network.capture.capture_rows`."""
    held = len(sink.held)
    if held and can_resume(batches):
        progress.note(f"{title}: the loader begins at batch {held - 1}; those before are not loaded, nor compared")
    elif held:
        progress.note(
            f"{title}: the loader has no `starting_at`, so its first {held} batches are loaded again, and compared"
        )
    total = len(batches) if isinstance(batches, Sized) else None
    with progress.track(title, total, "batches") as advance:
        capture_rows(
            model, batches, layers, sink, rows=rows, to_rows=to_rows, batch_done=lambda _samples, _spared: advance(1)
        )
