"""One domain and seed of the ImageNet network: every row of the tables of docs/results/pretrained.md.

What is compressed are the 1 x 1 convolutions from block 6 on, 21 layers with 9 of 10 of the convolutions' weights, all
at once. What comes before block 5 stays as it is, so each picture goes through that once, and the rest is a network of
its own, `Later`, whose layers have the names that they have in the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import dalr_stream as ds
import pretrained_data
import pretrained_network
import pretrained_training
from dalr_stream.network import Replacement, accuracy
from labelled_batches import Batches

FIRST = 5
"""The block with which `Later` begins: block 6 adds to what block 5 gives."""
LAYERS = [r"re:blocks\.([6-9]|1\d)\.(expand|project)\.conv", "last.conv"]
RESTORE_RIDGE = 1e-3
OTHERS = 1000
"""Added to a seed for other crops of the same photographs."""
UNCOMPRESSED, SIZES = "uncompressed", "`ds.sizes`"
TUNED = ("SVD + bias compensation", "DALR", "MoMaSP")
"""Rows that are fine-tuned too, besides `SIZES`."""
Row = dict[str, list[float]]
"""Values at each budget, of `accuracy`, `agreement` and `lost`; and `finetuned`, of the smallest."""
Way = Callable[["Measured", float], Mapping[str, Replacement]]
"""Gives what takes the place of each layer, at a share of the weights."""
Part = Callable[["Measured"], Row]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    budgets: tuple[float, ...] = (0.5, 0.3)
    """Of the weights of the layers that are compressed."""
    samples: int = 700
    """Of the target domain: the head, the statistics and the fine-tuning are of these."""
    heldout: float = 0.0
    """Share of these that statistics leave out; scores are of others anyway."""
    tests: int = 600
    photographs: int = 600
    unseen: int = 200
    """Photographs on which predictions of ImageNet's classes are compared."""
    measured: int = 64
    """Of the target domain, by which `ds.sizes` measures its candidates."""
    epochs: int = 2
    """Of fine-tuning, of the smallest budget."""
    rate: float = 3e-4


@dataclass(frozen=True, slots=True)
class Measured:
    """One seed's network from the block `FIRST` on, its pictures as that block reads them, and its statistics."""

    scale: Scale
    model: nn.Module
    imagenet: nn.Module
    """The same with ImageNet's own head."""
    train: Batches
    test: Batches
    unseen: Batches
    """Photographs, labelled by what ImageNet's head says of them before compression."""
    again: Batches
    """Other crops of the photographs that statistics are of."""
    known: ds.Statistics
    there: ds.Statistics
    """Of photographs: the source."""
    structure: Any
    imagenet_structure: Any

    @classmethod
    def of(cls, domain: str, seed: int, scale: Scale) -> Measured:
        """Train the head, and stream the domain and the photographs through the network."""
        factory, classes = pretrained_data.DOMAINS[domain]
        whole = pretrained_network.imagenet()
        before = pretrained_network.earlier(whole, FIRST)
        imagenet = pretrained_network.Later(whole, FIRST).eval()
        train, test, photographs, again, unseen = (
            through(before, batches)
            for batches in (
                factory(seed=seed, samples=scale.samples),
                factory(seed=seed, part="test", samples=scale.tests),
                pretrained_data.photographs(seed=seed, samples=scale.photographs),
                pretrained_data.photographs(seed=seed + OTHERS, samples=scale.unseen),
                pretrained_data.photographs(seed=seed, part="test", samples=scale.unseen),
            )
        )
        model = pretrained_network.Later(whole, FIRST)
        model.head = nn.Linear(pretrained_network.FEATURES, classes)
        model.eval()
        pretrained_training.fit(model.head, through(model.features, train).inputs, train.labels)
        layers = ds.watch(model, LAYERS, example=next(iter(train)))
        felt = ds.watch(model, LAYERS, example=layers.structure, gradients=[*LAYERS, "head"])
        folding = ds.Folding(ds.HoldoutRule(scale.heldout))
        known = ds.accumulate(model, train, felt, rows=ds.RowRule(gradients=ds.GradientRule()), folding=folding)
        there = ds.accumulate(model, photographs, layers, folding=folding)
        structures = layers.structure, ds.network.Structure.of(imagenet, next(iter(train)))
        before = through(imagenet, unseen)
        said = Batches(unseen.inputs, before.inputs.argmax(1), unseen.batch_size)
        return cls(scale, model, imagenet, train, test, said, again, known, there, *structures)

    @property
    def layers(self) -> Mapping[str, ds.Layer]:
        """The layers that are compressed, with the domain's statistics."""
        return {name: layer for name, layer in self.known.items() if name != "head"}

    def low_rank(self, method: ds.Method, statistics: ds.Statistics, share: float) -> dict[str, Replacement]:
        """Factor every layer at the same share of its break-even rank."""
        found: dict[str, Replacement] = {}
        for name in self.layers:
            m, d = statistics[name].weight.shape
            found[name] = ds.solve(statistics[name], method).at_rank(max(1, int(share * m * d / (m + d))))
        return found

    def selected(self, solve: Callable[[ds.Layer, ds.Layer], Any], share: float) -> dict[str, Replacement]:
        """Keep the same share of the nodes of each layer that widens: that shrinks the one after it, too."""
        found: dict[str, Replacement] = {}
        for name, layer in self.layers.items():
            if "project" not in name:
                nodes = max(1, int(share * layer.weight.shape[0]))
                solution = solve(layer, self.there[name])
                found[name] = solution.at_size(nodes, ridge=RESTORE_RIDGE, layer=name)
        return found

    def found(self, words: str) -> list[Mapping[str, Replacement]]:
        """Return what takes the place of each layer in one row of the tables, at each budget."""
        return [WAYS[words](self, share) for share in self.scale.budgets]

    def scores(self, found: Sequence[Mapping[str, Replacement]]) -> Row:
        """Score the networks of every budget on the domain, and on photographs with ImageNet's head."""
        return {
            "accuracy": [accuracy(ds.compress(self.model, one, example=self.structure), self.test) for one in found],
            "agreement": [
                accuracy(ds.compress(self.imagenet, one, example=self.imagenet_structure), self.unseen) for one in found
            ],
        }

    def finetuned(self, found: Mapping[str, Replacement]) -> Row:
        """Fine-tune a network on the domain's pictures, all of it, and score it."""
        options = ds.FineTuning(epochs=self.scale.epochs, rate=self.scale.rate, train="all")
        small = ds.finetune(ds.compress(self.model, found, example=self.structure), self.train, options)
        return {"finetuned": [accuracy(small, self.test)]}


def through(network: Callable[[torch.Tensor], torch.Tensor], batches: Batches) -> Batches:
    """Return what a network makes of the pictures, with their labels; images have their channels last in memory.

    Depthwise convolutions are twice as fast on those.
    """
    last = torch.channels_last
    with torch.no_grad():
        found = torch.cat([network(inputs.contiguous(memory_format=last)) for inputs, _ in batches])
    found = found.contiguous(memory_format=last) if found.ndim == 4 else found
    return Batches(found, batches.labels, batches.batch_size)


def _low_rank(method: ds.Method, *, elsewhere: bool = False) -> Way:
    return lambda one, share: one.low_rank(method, one.there if elsewhere else one.known, share)


def _selected(solve: Callable[[ds.Layer, ds.Layer], ds.ChannelSelection]) -> Way:
    return lambda one, share: one.selected(solve, share)


WAYS: Mapping[str, Way] = {
    "truncated SVD": _low_rank(ds.Method.SVD),
    "SVD + bias compensation": _low_rank(ds.Method.SVD_BC),
    "DALR, statistics of photographs": _low_rank(ds.Method.DALR_ANCHORED_AFFINE, elsewhere=True),
    "DALR": _low_rank(ds.Method.DALR_ANCHORED_AFFINE),
    "DALR weighted by gradients": _low_rank(ds.Method.DALR_WEIGHTED_AFFINE),
    "pruning by mean activation": _selected(lambda layer, _: ds.prune_by_mean(layer)),
    "spectral pruning": _selected(lambda layer, _: ds.spectral(layer)),
    "MoMaSP": _selected(ds.momasp),
}
"""Rows of the tables, of the same share of each layer."""


def scored(words: str) -> Part:
    """Return what scores one of `WAYS`."""
    return lambda one: one.scores(one.found(words))


def tuned(words: str) -> Part:
    """Return what fine-tunes one of `WAYS`, at the smallest budget."""
    return lambda one: one.finetuned(one.found(words)[-1])


def uncompressed(one: Measured) -> Row:
    """Score the network as it is."""
    return {"accuracy": [accuracy(one.model, one.test)] * len(one.scale.budgets)}


def by_sizes(one: Measured) -> Row:
    """Score what `ds.sizes` finds at each budget, and fine-tune the smallest."""
    plans = ds.sizes(
        one.model,
        one.known,
        ds.OutputDistance(one.model, one.train, samples=one.scale.measured),
        one.scale.budgets,
        layers=list(one.layers),
        structure=one.structure,
        methods=[ds.Method.DALR_ANCHORED_AFFINE, ds.Method.SPECTRAL],
    )
    found = [plan.replacements for plan in plans]
    return one.scores(found) | one.finetuned(found[-1])


def lost(statistics: ds.Statistics, unseen: Batches, one: Measured) -> Row:
    """Return the share of the features' variance that DALR loses at each budget, on pictures that decide nothing."""
    values, found = through(one.model.features, unseen).inputs.double(), []  # type: ignore[operator]
    total = (values - values.mean(0)).square().sum()
    for share in one.scale.budgets:
        chosen = one.low_rank(ds.Method.DALR_ANCHORED_AFFINE, statistics, share)
        small = ds.compress(one.model, chosen, example=one.structure)
        gap = through(small.features, unseen).inputs.double() - values  # type: ignore[operator]
        found.append(float(gap.square().sum() / total))
    return {"lost": found}


PARTS: Mapping[tuple[str, str], Part] = {
    (UNCOMPRESSED, "scores"): uncompressed,
    **{(words, "scores"): scored(words) for words in WAYS},
    ("domain", "lost"): lambda one: lost(one.known, one.test, one),
    ("photographs", "lost"): lambda one: lost(one.there, one.again, one),
    **{(words, "finetuned"): tuned(words) for words in TUNED},
    (SIZES, "scores"): by_sizes,
}
"""What is measured of each domain and seed, by row; each is kept by itself, so an interrupted run goes on there."""
