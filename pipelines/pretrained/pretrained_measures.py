"""One domain and seed of the ImageNet network: every row of the tables of docs/results/pretrained.md.

What is compressed are the 1 x 1 convolutions from block 6 on, 21 layers with 9 of 10 of the convolutions' weights, all
at once. What comes before block 5 stays as it is, so each picture goes through that once, and the rest is a network of
its own, `Later`, whose layers have the names that they have in the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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
SIZES = "`ds.sizes`"
TUNED = ("SVD + bias compensation", "DALR", "MoMaSP")
"""Rows that are fine-tuned too, besides `SIZES`."""
Row = dict[str, list[float]]
"""Values at each budget, of `accuracy` and `agreement`; and `finetuned`, of the smallest."""
Rows = dict[str, Row]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything."""

    budgets: tuple[float, ...] = (0.5, 0.3)
    """Of the weights of the layers that are compressed."""
    samples: int = 700
    """Of the target domain: the head, the statistics and the fine-tuning are of these."""
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
        train, test, photographs, unseen = (
            through(before, batches)
            for batches in (
                factory(seed=seed, samples=scale.samples),
                factory(seed=seed, part="test", samples=scale.tests),
                pretrained_data.photographs(seed=seed, samples=scale.photographs),
                pretrained_data.photographs(seed=seed, part="test", samples=scale.unseen),
            )
        )
        model = pretrained_network.Later(whole, FIRST)
        model.head = nn.Linear(pretrained_network.FEATURES, classes)
        model.eval()
        pretrained_training.fit(model.head, through(model.features, train).inputs, train.labels)
        layers = ds.watch(model, LAYERS, example=next(iter(train)))
        felt = ds.watch(model, LAYERS, example=layers.structure, gradients=[*LAYERS, "head"])
        known = ds.accumulate(model, train, felt, rows=ds.RowRule(gradients=ds.GradientRule()))
        there = ds.accumulate(model, photographs, layers)
        structures = layers.structure, ds.network.Structure.of(imagenet, next(iter(train)))
        before = through(imagenet, unseen)
        said = Batches(unseen.inputs, before.inputs.argmax(1), unseen.batch_size)
        return cls(scale, model, imagenet, train, test, said, known, there, *structures)

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

    def row(self, found: list[Mapping[str, Replacement]], *, tune: bool) -> Row:
        """Score the networks of every budget, the smallest also fine-tuned."""
        networks = [ds.compress(self.model, one, example=self.structure) for one in found]
        general = [ds.compress(self.imagenet, one, example=self.imagenet_structure) for one in found]
        row = {
            "accuracy": [accuracy(network, self.test) for network in networks],
            "agreement": [accuracy(network, self.unseen) for network in general],
        }
        if tune:
            options = ds.FineTuning(epochs=self.scale.epochs, rate=self.scale.rate, train="all")
            row["finetuned"] = [accuracy(ds.finetune(networks[-1], self.train, options), self.test)]
        return row


def through(network: Callable[[torch.Tensor], torch.Tensor], batches: Batches) -> Batches:
    """Return what a network makes of the pictures, with their labels."""
    with torch.no_grad():
        return Batches(torch.cat([network(inputs) for inputs, _ in batches]), batches.labels, batches.batch_size)


def measure(domain: str, seed: int, scale: Scale) -> dict[str, Rows]:
    """Return every row of one domain and seed; `lost` is what `further` gives."""
    one = Measured.of(domain, seed, scale)
    uncompressed = accuracy(one.model, one.test)
    rows: Rows = {"uncompressed": {"accuracy": [uncompressed] * len(scale.budgets)}}
    ways: dict[str, Callable[[float], Mapping[str, Replacement]]] = {
        "truncated SVD": partial(one.low_rank, ds.Method.SVD, one.known),
        "SVD + bias compensation": partial(one.low_rank, ds.Method.SVD_BC, one.known),
        "DALR, statistics of photographs": partial(one.low_rank, ds.Method.DALR_ANCHORED_AFFINE, one.there),
        "DALR": partial(one.low_rank, ds.Method.DALR_ANCHORED_AFFINE, one.known),
        "DALR weighted by gradients": partial(one.low_rank, ds.Method.DALR_WEIGHTED_AFFINE, one.known),
        "pruning by mean activation": partial(one.selected, lambda layer, _: ds.prune_by_mean(layer)),
        "spectral pruning": partial(one.selected, lambda layer, _: ds.spectral(layer)),
        "MoMaSP": partial(one.selected, ds.momasp),
    }
    for words, way in ways.items():
        rows[words] = one.row([way(share) for share in scale.budgets], tune=words in TUNED)
    distance = ds.OutputDistance(one.model, one.train, samples=scale.measured)
    plans = ds.sizes(
        one.model,
        one.known,
        distance,
        scale.budgets,
        layers=list(one.layers),
        structure=one.structure,
        methods=[ds.Method.DALR_ANCHORED_AFFINE, ds.Method.SPECTRAL],
    )
    rows[SIZES] = one.row([plan.replacements for plan in plans], tune=True)
    return {"rows": rows, "lost": further(one)}


def further(one: Measured) -> Rows:
    """Return the share of the features' variance that DALR loses, on pictures that decide nothing.

    Of the domain with its own statistics, and of photographs with theirs: domains far from the source should lose less.
    """
    found: Rows = {}
    for words, statistics, unseen in (("domain", one.known, one.test), ("photographs", one.there, one.unseen)):
        values = through(one.model.features, unseen).inputs.double()  # type: ignore[operator]
        total = (values - values.mean(0)).square().sum()
        found[words] = {"lost": []}
        for share in one.scale.budgets:
            chosen = one.low_rank(ds.Method.DALR_ANCHORED_AFFINE, statistics, share)
            small = ds.compress(one.model, chosen, example=one.structure)
            gap = through(small.features, unseen).inputs.double() - values  # type: ignore[operator]
            found[words]["lost"].append(float(gap.square().sum() / total))
    return found
