"""One pass of sequential compression: solves the layers whose turn it is and reports their errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dalr_stream.engine.cross.layer_cross import LayerCrossMoments
from dalr_stream.engine.layer_moments import LayerMoments
from dalr_stream.engine.sequential.heads_in_turn import AttentionTurn
from dalr_stream.engine.sequential.layer_choice import LayerChoice
from dalr_stream.engine.sequential.pass_moments import PassMoments
from dalr_stream.engine.sequential.targets import StreamTargets, Target
from dalr_stream.engine.solve import factor_by, select_by
from dalr_stream.network.capture.passes import SameEveryPass
from dalr_stream.network.layers.groups import parts_of
from dalr_stream.network.layers.spec import LayerSpec, layer_of, select_layers, weights_of
from dalr_stream.network.structure.graph import Structure
from dalr_stream.network.structure.readers import readers_of
from dalr_stream.network.surgery.compress import Replacement
from dalr_stream.network.surgery.plan import first_layer
from dalr_stream.numerics.heads.layout import HeadLayout
from dalr_stream.numerics.lowrank.factors import LowRankFactors
from dalr_stream.numerics.lowrank.grouped import factors_of
from dalr_stream.numerics.methods import Family
from dalr_stream.numerics.rows.sampling import HoldoutRule
from dalr_stream.numerics.selection.restoration import (
    RefittedReader,
    joint_cross,
    reader_errors,
    refitted,
    restored_towards,
)
from dalr_stream.numerics.sizes.losses import lost_nodes, lost_towards, outputs_energy, relative
from dalr_stream.numerics.statistics.channels import ChannelGroup, ChannelReader, moments_of_taps
from dalr_stream.numerics.statistics.cross import CrossMoments
from dalr_stream.numerics.statistics.moments import Moments
from dalr_stream.numerics.types import Vector
from dalr_stream.streaming.folding import Folding


@dataclass(frozen=True, slots=True)
class LayerOutcome:
    """What became of one layer. Errors are norms over norms, on held-out rows where some are kept apart."""

    choice: LayerChoice
    inherited: float
    """||Y - (W X + b)|| / ||Y - b||: what the layers before had cost when it was this one's turn; X, W and b are those
    of the network as compressed so far, Y is the original's. Of a selection ||phi - psi|| / ||phi||, with the nodes phi
    of the original and psi of the network as compressed so far; of heads before the output layer is solved for them."""
    error: float
    """The same with the factor pair in place; of a selection, ||phi - A psi_J|| / ||phi|| over all its nodes."""
    target: Target = Target.OUTPUTS
    """Towards what it was solved. Towards a stream, Y has what that had lost added to it; a selection's errors are then
    those of what its readers give."""

    def __str__(self) -> str:
        label, size = self.choice.by.label, self.choice.size
        towards = ", towards the stream" if self.target is Target.STREAM else ""
        return f"{label}, {size}{towards}: error {self.error:.4f}, of which it inherited {self.inherited:.4f}"


@dataclass(frozen=True, slots=True)
class Solved:
    """What takes a layer's place, and what that loses."""

    replacement: Replacement
    outcome: LayerOutcome
    refitted: Mapping[str, RefittedReader] = field(default_factory=dict)
    """Weight and bias of what reads a selection's nodes, or narrower heads, where these are solved for themselves."""


@dataclass(frozen=True, slots=True)
class SequentialPass:
    """Inputs shared by all passes, and what one pass does with them."""

    original: nn.Module
    choices: Mapping[str, LayerChoice]
    target: SameEveryPass
    source: SameEveryPass | None
    folding: Folding
    moments: PassMoments
    targets: StreamTargets = field(default_factory=StreamTargets)
    attentions: Mapping[str, HeadLayout] = field(default_factory=dict)

    def solve(self, group: Sequence[str], current: nn.Module) -> dict[str, Solved]:
        """Return what takes the place of each layer of `group` in `current`, and what it loses."""
        if self.choices[group[0]].by.family is not Family.LOW_RANK:
            solved = self._narrow if group[0] in self.attentions else self._select
            return {name: solved(name, current) for name in group}
        moments = self._of_inputs_and_targets(group, current)
        return {name: self._factor(name, current, moments) for name in group}

    def _factor(self, name: str, current: nn.Module, moments: LayerMoments | LayerCrossMoments) -> Solved:
        choice, parts = self.choices[name], parts_of(name, layer_of(current, name))
        layers = [(moments[part], *weights_of(current, part)) for part in parts]
        felt = choice.gradients(len(parts))
        solved = [
            factor_by(choice.by, weight, bias, inputs, choice.ridge, gradients, choice.gradient_ridge)
            for (inputs, weight, bias), gradients in zip(layers, felt, strict=True)
        ]
        pair = factors_of(solved).at_rank(choice.size, layer=name)  # says so where it has no such rank
        biases, judging = [bias for _, _, bias in layers], [inputs for inputs, _, _ in layers]
        del layers
        if parts[0] in moments.heldout:
            judging.clear()  # moments that are on disk as well: those of held-out rows take as much memory
            judging += [moments.heldout[part] for part in parts]
        pairs = zip(solved, biases, judging, strict=True)
        squares = [_squared_errors(one, bias, choice.size, seen) for one, bias, seen in pairs]
        before, after, whole = np.sum(squares, axis=0)
        inherited, error = relative(np.array([before, after]), float(whole))
        target = Target.STREAM if self._mends(name, current) else Target.OUTPUTS
        return Solved(pair, LayerOutcome(choice, float(inherited), float(error), target))

    def _narrow(self, name: str, current: nn.Module) -> Solved:
        choice, mending = self.choices[name], [name] if self._mends(name, current) else []
        turn = AttentionTurn(self.attentions[name], choice, self.moments, self.target, self.folding)
        found = turn.narrowed(current, mending)
        inherited, error = map(float, relative(found.squares[:2], float(found.squares[2])))
        target = Target.STREAM if mending else Target.OUTPUTS
        return Solved(found.heads, LayerOutcome(choice, inherited, error, target), {name: found.output})

    def _mends(self, name: str, current: nn.Module, readers: Collection[str] = ()) -> bool:
        """Tell whether a layer is solved towards a stream that has lost something by now."""
        return current is not self.original and self.targets.mends(name, readers)

    def _select(self, name: str, current: nn.Module) -> Solved:
        choice, structure = self.choices[name], self.structure_of(current)
        group, layers = structure.group_of(name), readers_of(structure, [name])
        if choice.by.restores and self._mends(name, current, names := group.reader_names):
            return self._select_towards_streams(name, current, group.channels, names)
        nodes, heldout = self._nodes(name, current, group, layers)
        now = nodes.inputs if isinstance(nodes, CrossMoments) else nodes
        read = self._of_source(layers, current, choice)
        source = None if read is None else group.joint(read)
        solution = select_by(choice.by, now, source, choice.strength, choice.metric)
        nodes_kept = solution.at_size(choice.size, ridge=choice.restore_ridge, layer=name)
        if isinstance(nodes, CrossMoments) and solution.factor is not None:  # pruning alone restores nothing
            nodes_kept = restored_towards(nodes_kept, nodes, choice.restore_ridge)
        judging = nodes if heldout is None else heldout
        if isinstance(judging, CrossMoments):
            before, after = lost_towards(nodes_kept, judging)
        else:
            before, after = 0.0, lost_nodes(nodes_kept, judging)
        return Solved(nodes_kept, LayerOutcome(choice, math.sqrt(before), math.sqrt(after)))

    def _select_towards_streams(self, name: str, current: nn.Module, channels: int, names: Sequence[str]) -> Solved:
        """Select by the nodes of the network as compressed so far, and solve what reads them towards its stream."""
        choice, layers = self.choices[name], select_layers(current, names)
        pairs = self.moments.beside_outputs(current, self.target, layers, self.folding, names)
        now = moments_of_taps([pairs[one].inputs for one in names], channels)
        read = self._of_source(layers, current, choice)
        source = None if read is None else moments_of_taps([read[one] for one in names], channels)
        solution = select_by(choice.by, now, source, choice.strength, choice.metric)
        kept = solution.at_size(choice.size, ridge=choice.restore_ridge, layer=name)
        weights = {reader: weights_of(current, reader) for reader in names}
        readers = {one: refitted(kept, *weights[one], pairs[one], choice.restore_ridge) for one in names}
        judging = pairs.heldout or pairs
        squares = [reader_errors(kept, *weights[one], readers[one], judging[one]) for one in names]
        before, after, whole = np.sum(squares, axis=0)
        inherited, error = relative(np.array([before, after]), float(whole))
        return Solved(kept, LayerOutcome(choice, float(inherited), float(error), Target.STREAM), readers)

    def _of_source(self, layers: Sequence[LayerSpec], current: nn.Module, choice: LayerChoice) -> LayerMoments | None:
        """Return the moments of what is read of the nodes on the source domain, where the method compares with it."""
        if self.source is None or not choice.by.needs_source:
            return None
        every = dataclasses.replace(self.folding, holdout=HoldoutRule(0.0))  # nothing is measured on the source
        return self.moments.alone(current, self.source, layers, every, "source")

    def _nodes(
        self, name: str, current: nn.Module, group: ChannelGroup, layers: Sequence[LayerSpec]
    ) -> tuple[Moments | CrossMoments, Moments | CrossMoments | None]:
        """Return the moments of a layer's channels as their readers read them, and of the held-out rows.

        Beside what they read in the original, but where that is the same still.
        """
        if current is self.original:
            moments = self.moments.alone(current, self.target, layers, self.folding, "target")
            return group.joint(moments), group.joint(moments.heldout) if moments.heldout else None
        structure = self.structure_of(self.original)
        then = {spec.stream: spec for spec in readers_of(structure, [name])}
        readers = _in_both(current, group, structure.group_of(name))
        targets = {mine.stream: then[original.stream] for mine, original in readers}
        pairs = self.moments.beside(current, self.target, layers, targets, self.folding)
        heldout = joint_cross(readers, group.channels, pairs.heldout) if pairs.heldout else None
        return joint_cross(readers, group.channels, pairs), heldout

    def structure_of(self, current: nn.Module) -> Structure:
        """Return which channels of a network are coupled."""
        return Structure.of(current, self.target.first())

    def _of_inputs_and_targets(self, group: Sequence[str], current: nn.Module) -> LayerMoments | LayerCrossMoments:
        """Return moments of the inputs alone where they are the original's still: they decide more exactly."""
        layers = select_layers(current, list(group))
        if current is self.original:
            return self.moments.alone(current, self.target, layers, self.folding, "target")
        mending = [name for name in group if self.targets.mends(name)]
        return self.moments.beside_outputs(current, self.target, layers, self.folding, mending)


def _in_both(
    current: nn.Module, group: ChannelGroup, original: ChannelGroup
) -> tuple[tuple[ChannelReader, ChannelReader], ...]:
    """Return each reader of a group beside the same one in the original, where it may be no pair yet."""
    mine = sorted(group.readers, key=lambda reader: (reader.span.layer, reader.first))
    its = sorted(original.readers, key=lambda reader: (first_layer(current, reader.span.layer), reader.first))
    return tuple(zip(mine, its, strict=True))


def _squared_errors(
    factors: LowRankFactors, bias: NDArray[np.floating] | None, rank: int, moments: Moments | CrossMoments
) -> Vector:
    """(3,): ||.||^2 of the layer's error as it is (0 where Z = W X), of its pair's, and of the outputs."""
    error = factors.errors(moments)[rank]
    if isinstance(moments, Moments):
        return np.array([0.0, error, outputs_energy(factors, moments)])
    own = np.zeros(factors.outputs) if bias is None else bias.astype(np.float64)
    whole = moments.outputs.products.diagonal(own).sum()
    return np.array([moments.squared_error(factors.weight, own), error, whole])
