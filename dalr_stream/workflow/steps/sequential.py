"""The compress step of a run whose layers are compressed one after the other, at sizes that are decided already.

After each pass the network as compressed so far is kept in the folder `sequence` of the run's output, so a run that was
killed goes on from the last finished pass; the folder goes when the compressed network is saved. The moments that each
pass decides by are kept in the folder `passes`, and stay: at another size, ridge or method only those passes are made
whose layers read something else than before.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.engine.cross.output_errors import output_errors
from dalr_stream.engine.sequential.compress import compress_sequentially
from dalr_stream.engine.sequential.layer_choice import LayerChoice
from dalr_stream.engine.sequential.pass_moments import KnownMoments
from dalr_stream.engine.sequential.passes import SequentialCompression, last_of, sequential_passes
from dalr_stream.engine.sequential.sequential_pass import LayerOutcome
from dalr_stream.engine.sequential.targets import Target
from dalr_stream.engine.stores.store_view import StoreView
from dalr_stream.errors import (
    FewSamplesWarning,
    OutlierFeaturesWarning,
    ParameterIncreaseWarning,
    StoreDamagedError,
    StoreNotFoundError,
)
from dalr_stream.network.saved import checkpoint
from dalr_stream.numerics.methods import Family
from dalr_stream.progress import Progress
from dalr_stream.storage.durable import remove_folder
from dalr_stream.streaming.folding import CUPY, Folding
from dalr_stream.workflow.runfile.project import Project
from dalr_stream.workflow.steps.sizes.compression import Compression, LayerGain, LayerSize, SequenceGain
from dalr_stream.workflow.steps.solving.ridge import ridge_of
from dalr_stream.workflow.steps.unseen import Unseen


def compress_in_sequence(
    project: Project,
    store: StoreView,
    compression: Compression,
    parallel: nn.Module,
    fingerprint: str,
    progress: Progress,
) -> tuple[nn.Module, Compression]:
    """Return the network compressed layer after layer at the sizes decided, and the record with what that gained.

    `parallel` is the network at the same sizes, all layers solved from the original's statistics. Too few samples and
    ranks that add parameters were warned of when those were solved.
    """
    choices = choices_of(project, store, compression.layers)
    begun = _resumed(project, choices, fingerprint)
    if begun is not None:
        progress.note(f"compress: resuming after {', '.join(begun.layers)}")
    passes = _passes(project, choices, begun=begun, store=project.pass_moments, progress=progress)
    del begun  # its network goes as soon as the next one is made of it
    with project.code.importing(), _warned_of_before():
        for state in passes:
            if state.left and state.layers:
                _keep(project, state, fingerprint)
        gain = _gain(project, state, parallel)
    progress.note(f"compress: {gain}")
    return state.network, dataclasses.replace(compression, gain=gain)


def compress_in_sequence_by_blocks(
    project: Project, store: StoreView, compression: Compression, progress: Progress
) -> tuple[nn.Module, Compression]:
    """Do the same with one block in memory; what comes of it is open by blocks, and not measured beside another.

    Compressed blocks are kept in the folder `passes`, and stay: where choices change, those before the first of them
    are not solved again.
    """
    choices = choices_of(project, store, compression.layers)
    found = _by_blocks(project, choices, project.pass_moments, progress)
    gain = SequenceGain(found.passes, "", (), _towards_stream(found))
    return found.network, dataclasses.replace(compression, gain=gain)


def compressed_in_turn_by_blocks(project: Project, choices: Mapping[str, LayerChoice]) -> nn.Module:
    """Return the same of some choices, there until it is asked for others: what sizes are chosen by."""
    return _by_blocks(project, choices, project.measuring / "in-turn", None).network


def _by_blocks(
    project: Project, choices: Mapping[str, LayerChoice], store: Path, progress: Progress | None
) -> SequentialCompression:
    with project.code.importing(), _warned_of_before():
        return compress_sequentially(
            project.recorded,
            project.code.batches(project.config.solve.target),
            choices,
            target=project.config.compress.target,
            source=source_of(project),
            store=store,
            rows=project.code.rows,
            folding=folding_of(project),
            progress=progress,
            blocks=project.config.network.blocks or None,
        )


def compressed_in_turn(project: Project, choices: Mapping[str, LayerChoice]) -> nn.Module:
    """Return the network compressed layer after layer, of which nothing is kept: what sizes are chosen by."""
    with _warned_of_before():
        return last_of(_passes(project, choices)).network


def _passes(
    project: Project,
    choices: Mapping[str, LayerChoice],
    *,
    begun: SequentialCompression | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Iterator[SequentialCompression]:
    target = project.config.solve.target
    return sequential_passes(
        project.network,
        project.code.batches(target),
        choices,
        target=project.config.compress.target,
        source=source_of(project),
        store=store,
        rows=project.code.rows,
        folding=folding_of(project),
        begun=begun,
        known=KnownMoments(project.store, target, project.folding(target)),
        progress=progress,
    )


@contextmanager
def _warned_of_before() -> Iterator[None]:
    """Say nothing again of what was warned of when layers were solved all at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        warnings.simplefilter("ignore", OutlierFeaturesWarning)
        warnings.simplefilter("ignore", ParameterIncreaseWarning)
        yield


def forget_sequence(project: Project) -> None:
    """Remove what was kept between the passes."""
    remove_folder(project.sequence)


def forget_pass_moments(project: Project) -> None:
    """Remove the moments of all passes."""
    remove_folder(project.pass_moments)


def choices_of(project: Project, store: StoreView, sizes: Mapping[str, LayerSize]) -> dict[str, LayerChoice]:
    """Return how each layer is compressed at its turn."""
    return {layer: _choice(project, store, layer, size) for layer, size in sizes.items()}


def _choice(project: Project, store: StoreView, layer: str, size: LayerSize) -> LayerChoice:
    """Return the options the layer was solved with; a ridge that rows chose is not chosen again."""
    section, heads = project.config.solve, size.method.family is Family.HEADS
    ridge = ridge_of(section, store.solutions(layer, [size.method])[size.method])
    weighted = size.method.weighted
    return LayerChoice(
        size.method,
        size.size,
        ridge,
        section.strength,
        section.restore_ridge,
        store.layer(layer, section.target, None) if weighted and not heads else None,
        section.gradient_ridge_rule,
        attention=store.statistics(section.target) if weighted and heads else None,
    )


def folding_of(project: Project) -> Folding:
    """Return how the target's rows become cross moments: whole, and by numpy where CuPy folds what lies in a store."""
    folding = project.folding(project.config.solve.target)
    return dataclasses.replace(folding, shards=1, device=None if folding.device == CUPY else folding.device)


def source_of(project: Project) -> Iterable[Any] | None:
    """Return the batches of the source domain, where there is one."""
    name = project.config.solve.source
    return None if name is None else project.code.batches(name)


def _gain(project: Project, state: SequentialCompression, parallel: nn.Module) -> SequenceGain:
    """Measure both networks on what their statistics have not seen, or on the target."""
    unseen, names = Unseen.measuring(project.config), _measured(project, state)
    before, after = (
        output_errors(
            project.network,
            network,
            project.code.batches(unseen.domain),
            names,
            rows=project.code.rows,
            holdout=unseen.holdout,
        )
        for network in (parallel, state.network)
    )
    gains = tuple(LayerGain(name, before[name], after[name]) for name in names)
    return SequenceGain(state.passes, str(unseen), gains, _towards_stream(state))


def _towards_stream(state: SequentialCompression) -> tuple[str, ...]:
    return tuple(name for name, outcome in state.layers.items() if outcome.target is Target.STREAM)


def _measured(project: Project, state: SequentialCompression) -> list[str]:
    """Return the layers that give as many outputs as before: those with factors, and what reads a selection's nodes."""
    selected = {name for name, outcome in state.layers.items() if outcome.choice.selects}
    seen = [layer for name in state.layers for layer in (_readers(project, name) if name in selected else [name])]
    return [name for name in dict.fromkeys(seen) if name not in selected]


def _readers(project: Project, name: str) -> list[str]:
    structure = project.structure
    return [] if structure is None else [reader.span.layer for reader in structure.group_of(name).readers]


def _keep(project: Project, state: SequentialCompression, fingerprint: str) -> None:
    layers = {name: (outcome.inherited, outcome.error, outcome.target) for name, outcome in state.layers.items()}
    facts = {"made_from": fingerprint, "passes": state.passes, "layers": layers}
    checkpoint.save(state.network, project.sequence, provenance=facts)


def _resumed(project: Project, choices: Mapping[str, LayerChoice], fingerprint: str) -> SequentialCompression | None:
    """Return what an earlier run of this very step left; None where there is nothing of it, or it is damaged."""
    try:
        facts = checkpoint.provenance(project.sequence)
    except (StoreNotFoundError, StoreDamagedError):
        return None
    if facts.get("made_from") != fingerprint:
        return None
    return SequentialCompression(
        checkpoint.load(project.sequence, project.code.placed),
        tuple(tuple(group) for group in facts["passes"]),
        {name: _outcome(choices[name], *kept) for name, kept in facts["layers"].items()},
    )


def _outcome(choice: LayerChoice, inherited: float, error: float, target: str) -> LayerOutcome:
    return LayerOutcome(choice, inherited, error, Target(target))
