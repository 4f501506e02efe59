"""The cross step: moments of what layers read in a network compressed before, beside what they give in this one.

They are kept in a store of their own, `cross.zarr`, for methods, ranks and ridges that are tried in Python afterwards:
`dalr(*store.weights(layer), store.cross()[layer])`. What compressing layer after layer needs, its step keeps itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from dalr_stream.engine.cross.accumulate import accumulate_cross, estimate_cross
from dalr_stream.engine.cross.cost import PairMemory
from dalr_stream.errors import ConfigError, LayerNotFoundError, UnsupportedLayerError
from dalr_stream.network.layers.kinds import matrix_of
from dalr_stream.network.layers.spec import LayerSpec, layer_of, select_layers
from dalr_stream.network.saved import checkpoint
from dalr_stream.numerics.rows.streams import Pairing, stream_name
from dalr_stream.storage.json_record import digest_of
from dalr_stream.storage.records.moments import moments_path
from dalr_stream.storage.removal import forget_store
from dalr_stream.storage.schema import PARTS
from dalr_stream.streaming.folding import CUPY, Folding
from dalr_stream.streaming.plan import MemoryPlan
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps import accumulate, capture, train
from dalr_stream.workflow.steps.session import Session
from dalr_stream.workflow.steps.step import Artefact, Step, store_record

NAME = f"{accumulate.VERB} cross"


def steps(session: Session) -> Iterator[Step]:
    """Yield the step, where [accumulate] cross names a network."""
    project = session.project
    if project.config.accumulate.cross is not None:
        yield Step(
            NAME,
            accumulate.VERB,
            (train.NAME,),
            lambda: made_from(project),
            lambda: _artefacts(project),
            lambda _: _accumulate(session),
            lambda: _check(project),
        )


def made_from(project: Project) -> str:
    """Return the fingerprint of the cross moments."""
    target = project.config.solve.target
    return digest_of([accumulate.made_from(project, target), checkpoint.weights_digest(_folder(project))])


def planned(project: Project, network: nn.Module) -> MemoryPlan:
    """Return what they cost, were no layer compressed in the other network; any weights will do."""
    target = project.config.solve.target
    layers = select_layers(network, project.config.network.layers)
    first = next(iter(project.code.batches(target)))
    batch = PairMemory.of([network], first, layers, project.code.rows)
    return estimate_cross(network, layers, folding=_folding(project), batch=batch)


def _folding(project: Project) -> Folding:
    """Return how rows are folded; CuPy folds what lies in a store."""
    folding = project.folding(project.config.solve.target)
    return dataclasses.replace(folding, device=None) if folding.device == CUPY else folding


def _check(project: Project) -> None:
    checkpoint.weights_digest(_folder(project))


def _folder(project: Project) -> Path:
    return project.folder / str(project.config.accumulate.cross)


def _artefacts(project: Project) -> Iterator[Artefact]:
    for layer in _paired(project, _compressed(project))[0]:
        stream = stream_name(layer.name, Pairing.OUTPUTS)
        for part in PARTS:
            yield store_record(moments_path(project.cross, project.config.solve.target, stream, part))


def _compressed(project: Project) -> nn.Module:
    with project.code.importing():
        return checkpoint.load(_folder(project), project.code.placed)


def _paired(project: Project, compressed: nn.Module) -> tuple[Sequence[LayerSpec], Sequence[str]]:
    """Return the layers that both networks have, giving as many outputs, and the names of the others."""
    layers = select_layers(project.network, project.config.network.layers)
    both = [layer for layer in layers if _outputs(compressed, layer.name) == layer.outputs]
    others = [layer.name for layer in layers if layer not in both]
    if not both:
        raise ConfigError(
            f"accumulate.cross: '{_folder(project)}' has none of {', '.join(others)} as a layer that gives what it did "
            "before: name a network of which some layers are not compressed yet"
        )
    return both, others


def _outputs(network: nn.Module, name: str) -> int | None:
    try:
        return int(matrix_of(layer_of(network, name)).shape[0])
    except (LayerNotFoundError, UnsupportedLayerError):
        return None  # a pair of layers by now


def _accumulate(session: Session) -> None:
    project, target = session.project, session.project.config.solve.target
    compressed = _compressed(project)
    layers, others = _paired(project, compressed)
    if others:
        session.progress.note(f"cross moments: left out are {', '.join(others)}, which are compressed in the other")
    if session.fresh and project.cross.is_dir():
        forget_store(project.cross)
    with project.code.importing(), capture.naming_fresh():
        accumulate_cross(
            project.network,
            compressed,
            project.code.batches(target),
            layers,
            store=project.cross,
            domain=target,
            rows=project.code.rows,
            folding=_folding(project),
            progress=session.progress,
        )
