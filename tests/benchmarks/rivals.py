"""What a user would take instead, beside this package's methods: the same statistics, sizes and network.

    python tests/benchmarks/rivals.py

The ImageNet network of `pipelines/pretrained` on handwritten digits, its 21 wide 1 x 1 convolutions at once, nothing
fine-tuned (`pip install 'dalr_stream[pretrained]'`). A rival is the formula of its paper, `rival_formulas.py`. Seconds
are of the CPU, peaks what numpy held beyond its inputs, both of solving all layers at one size.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import rival_formulas as formulas
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dalr_stream as ds
from dalr_stream.network import Replacement, accuracy
from dalr_stream.numerics.lowrank.factors import LowRankLayer
from dalr_stream.numerics.selection.nodes import SelectedNodes

RESTORE_RIDGE = 1e-3
SAMPLES_OF_FISHER = 256
"""Of which the gradients by the weights are taken, one by one, for FWSVD."""
Solve = Callable[[str, int], Replacement]
"""From a layer's name and a rank, or a number of nodes."""


@dataclass
class Subject:
    """A network, its layers with their statistics, and which of them may lose nodes."""

    model: nn.Module
    structure: Any
    layers: Mapping[str, ds.Layer]
    selectable: Sequence[str]
    train: Iterable[tuple[torch.Tensor, torch.Tensor]]
    test: Iterable[tuple[torch.Tensor, torch.Tensor]]

    def score(self, replacements: Mapping[str, Replacement]) -> float:
        """The share of test samples that are classified right."""
        return accuracy(ds.compress(self.model, replacements, example=self.structure), self.test)

    @cached_property
    def mean_of_absolute(self) -> dict[str, np.ndarray]:
        """(d,) for each layer: E |x|, which moments do not hold."""
        found: dict[str, list[Any]] = {name: [0.0, 0] for name in self.layers}

        def add(name: str, _: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            rows = inputs[0].double().transpose(1, -1).flatten(0, -2).abs()
            found[name][0] += rows.sum(0).numpy()
            found[name][1] += len(rows)

        hooks = [self.model.get_submodule(name).register_forward_pre_hook(partial(add, name)) for name in found]
        with torch.no_grad():
            for inputs, _ in self.train:
                self.model(inputs)
        for hook in hooks:
            hook.remove()
        return {name: total / count for name, (total, count) in found.items()}

    @cached_property
    def fisher(self) -> dict[str, np.ndarray]:
        """(m, d) for each layer: the mean square of a sample's gradient by each weight."""
        weights = {name: self.model.get_submodule(name).weight for name in self.layers}
        sums, count = {name: np.zeros(self.layers[name].weight.shape) for name in weights}, 0
        for inputs, labels in self.train:
            for one, label in zip(inputs[:, None], labels[:, None], strict=True):
                if count < SAMPLES_OF_FISHER:
                    loss = cross_entropy(self.model(one), label)
                    parts = torch.autograd.grad(loss, list(weights.values()))
                    for name, part in zip(weights, parts, strict=True):
                        sums[name] += part.flatten(1).double().square().numpy()
                    count += 1
        return {name: total / count for name, total in sums.items()}

    def magnitude(self, name: str) -> np.ndarray:
        """Each node's squared weights: the layer's own, those of what carries the nodes, and of what reads them."""
        carriers = (self.model.get_submodule(span.layer) for span in self.structure.group_of(name).carriers)
        carried = (
            one.weight.detach().double().flatten(1) if one.weight.ndim > 1 else one.weight.detach().double()[:, None]
            for one in carriers
        )
        read = (
            reader.weight.transpose(1, 0, 2).reshape(reader.weight.shape[1], -1) for reader in self.layers[name].readers
        )
        return formulas.group_magnitude(self.layers[name].weight, *(one.numpy() for one in carried), *read)


def factored(layer: ds.Layer, weight: np.ndarray, rank: int) -> LowRankLayer:
    """A matrix of a rank as a pair; the layer's bias stays."""
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    bias = np.zeros(len(weight)) if layer.bias is None else np.asarray(layer.bias, np.float64)
    return LowRankLayer(s[:rank, None] * vt[:rank], u[:, :rank], bias)


def low_rank(subject: Subject) -> dict[str, Solve]:
    """Methods that give a pair of factors: ours, then rivals."""
    layers = subject.layers

    def ours(method: ds.Method) -> Solve:
        return lambda name, rank: ds.solve(layers[name], method).at_rank(rank)

    def rival(solve: Callable[[str, ds.Layer, int], np.ndarray]) -> Solve:
        return lambda name, rank: factored(layers[name], solve(name, layers[name], rank), rank)

    def inputs(layer: ds.Layer) -> np.ndarray:
        return np.asarray(layer.known_inputs.second_moment)

    return {
        "truncated SVD": ours(ds.Method.SVD),
        "SVD + bias compensation": ours(ds.Method.SVD_BC),
        "**DALR**": ours(ds.Method.DALR_ANCHORED_AFFINE),
        "**DALR weighted by gradients**": ours(ds.Method.DALR_WEIGHTED_AFFINE),
        "SVD-LLM": rival(lambda _, layer, rank: formulas.svd_llm(layer.weight, inputs(layer), rank)),
        "ASVD": rival(lambda name, layer, rank: formulas.asvd(layer.weight, subject.mean_of_absolute[name], rank)),
        "FWSVD": rival(lambda name, layer, rank: formulas.fwsvd(layer.weight, subject.fisher[name], rank)),
        "KFAC-SVD": rival(
            lambda _, layer, rank: formulas.kfac_svd(
                layer.weight, inputs(layer), np.asarray(layer.gradients.second_moment), rank
            )
        ),
    }


def selections(subject: Subject) -> dict[str, Solve]:
    """Methods that keep some nodes: ours, then rivals."""
    layers = subject.layers

    def ours(method: ds.Method) -> Solve:
        return lambda name, size: ds.solve(layers[name], method).at_size(size, ridge=RESTORE_RIDGE, layer=name)

    def rival(importance: Callable[[str], np.ndarray], *, mends: bool) -> Solve:
        def solve(name: str, size: int) -> SelectedNodes:
            nodes = layers[name].known_nodes
            kept = formulas.best(importance(name), size)
            restore = formulas.dropped(nodes.features, kept)
            if mends:
                restore = formulas.grail(np.asarray(nodes.second_moment), kept, RESTORE_RIDGE)
                restore[kept] = np.eye(size)
            return SelectedNodes(kept, restore, np.zeros(nodes.features), float("nan"))

        return solve

    def active(name: str) -> np.ndarray:
        return np.asarray(layers[name].known_nodes.mean)

    return {
        "**spectral pruning**": ours(ds.Method.SPECTRAL),
        "**spectral pruning weighted by gradients**": ours(ds.Method.SPECTRAL_WEIGHTED),
        "Torch-Pruning, group magnitude": rival(subject.magnitude, mends=False),
        "Torch-Pruning, activation": rival(active, mends=False),
        "group magnitude, mended by the Gram matrix (GRAIL)": rival(subject.magnitude, mends=True),
        "activation, mended by the Gram matrix (GRAIL)": rival(active, mends=True),
    }


def break_even_share(layer: ds.Layer, share: float) -> int:
    """The rank at which a pair has this share of a layer's weights."""
    m, d = layer.weight.shape
    return max(1, int(share * m * d / (m + d)))


def rows(subject: Subject, budgets: Sequence[float]) -> Iterator[str]:
    """Yield the table in Markdown, a line as soon as it is measured."""
    yield "| | " + " | ".join(f"{share:.0%}" for share in budgets) + " | CPU seconds | peak MiB |"
    yield "|---|" + "---:|" * (len(budgets) + 2)
    yield "| uncompressed | " + " | ".join([f"{100 * subject.score({}):.1f}"] * len(budgets)) + " | | |"
    subject.mean_of_absolute, subject.fisher  # noqa: B018  # statistics are taken before the clock starts
    for methods, names, size in (
        (low_rank(subject), list(subject.layers), break_even_share),
        (selections(subject), subject.selectable, lambda layer, share: max(1, int(share * len(layer.weight)))),
    ):
        for words, solve in methods.items():

            def every(share: float, solve: Solve = solve, names: Sequence[str] = names, size: Any = size) -> Any:
                return {name: solve(name, size(subject.layers[name], share)) for name in names}

            scores = " | ".join(f"{100 * subject.score(every(share)):.1f}" for share in budgets)
            seconds, peak = cost(partial(every, budgets[-1]))
            yield f"| {words} | {scores} | {seconds:.2f} | {peak:.1f} |"


def cost(work: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU seconds of some work, and the MiB that it allocated at its peak, in a call of its own each."""
    begun = time.process_time()
    work()
    seconds = time.process_time() - begun
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds, peak / 2**20


def digits(seed: int) -> tuple[Subject, tuple[float, ...]]:
    """The pretrained network on handwritten digits, and its budgets."""
    pipelines = Path(__file__).parents[2] / "pipelines"
    sys.path[:0] = [str(pipelines / "shared"), str(pipelines / "pretrained")]
    from pretrained_measures import Measured, Scale

    one = Measured.of("digits", seed, Scale(heldout=0.1))  # as a run has it by default
    selectable = [name for name in one.layers if "project" not in name]
    subject = Subject(one.model, one.structure, one.layers, selectable, one.train, one.test)
    return subject, one.scale.budgets


def main() -> None:
    """Print the table."""
    for line in rows(*digits(seed=0)):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
