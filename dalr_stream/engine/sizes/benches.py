"""Where candidates of a network are measured: in memory, or block by block where its weights stay on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from dalr_stream.engine.sizes.by_blocks import ByBlocks
from dalr_stream.engine.sizes.measuring import Measure
from dalr_stream.engine.sizes.menus import Bench, InMemory
from dalr_stream.errors import InvalidInputError
from dalr_stream.network.layers.elsewhere import weights_elsewhere
from dalr_stream.network.measure.output_distance import OutputDistance
from dalr_stream.network.structure.recorded import Groups
from dalr_stream.network.surgery.compress import Replacement, compress
from dalr_stream.progress import Progress


@contextmanager
def bench_of(
    model: nn.Module,
    distance: OutputDistance,
    structure: Groups | None,
    score: Measure | None,
    store: str | Path | None,
    *,
    higher: bool,
    progress: Progress,
) -> Iterator[Bench]:
    """Give what networks are measured by: whole, or block by block where weights stay on disk."""

    def build(replacements: dict[str, Replacement]) -> nn.Module:
        return compress(model, replacements, example=structure)

    if weights_elsewhere(model) is None:
        yield InMemory(build, distance, score, higher, progress)
        return
    if score is not None:
        raise InvalidInputError(
            "sizes: block by block no candidate is there whole for a score to be called with: leave score out, or use "
            "a run file, whose [validation] names a metric and its batches"
        )
    if store is not None:
        Path(store).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="sizes-", dir=store) as folder:
        yield ByBlocks(model, distance, Path(folder), progress=progress)
