"""Unsupervised adaptation by maximum classifier discrepancy (Saito et al., CVPR 2018), as MoMaSP's section 4 uses it.

Two classifiers on one generator are trained to part on the target, and the generator to bring them together:

    A  generator and classifiers: least cross-entropy on the source
    B  classifiers alone: least cross-entropy on the source less the discrepancy on the target
    C  generator alone, `generator_steps` times: least discrepancy on the target

with the discrepancy the L1 distance of the two classifiers' probabilities, summed over classes (Saito et al. divide by
their number, which is too weak beside the cross-entropy in so few steps). To C is added that all classes shall occur on
the target: `BALANCE` times minus the mean over classes of the log of their mean probability (MCD's code for VisDA adds
it to A, times 0.01). Target labels are never used. The second classifier is dropped at the end. Training never stops
early: the last step is the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LinearLR

from adaptation_data import source_train, target_train
from adaptation_network import AdaptationNetwork, reset
from dalr_stream.network import accuracy
from labelled_batches import Batches

DECAY = 5e-4
"""Weight decay (in the gradient), of MCD's own code and of MoMaSP 5.1."""
BALANCE = 0.5
"""Weight of the classes' balance: of 0, 0.1 and 0.5 the best on validation digits."""
TINY = 1e-6
"""Of a probability: a class that no row is given to has a logarithm too."""
REPORT_EVERY = 100
STEPS = 500


def train(  # noqa: PLR0913 - each is an option of the run file
    model: nn.Module,
    *,
    seed: int,
    report: Callable[[str], None],
    source: str,
    target: str,
    root: str | None = None,
    steps: int = STEPS,
    warm_up: int = 100,
    generator_steps: int = 4,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
) -> None:
    """Train `model` (of `adaptation_network.build`) in place; it is left in evaluation mode.

    Deterministic for a seed on one machine with one number of threads.

    Parameters
    ----------
    model
        An `AdaptationNetwork`.
    seed
        Decides the starting weights, the data and the order of the rows.
    report
        Takes a line now and then.
    source, target, root
        Names of the data sets, and the folder that holds them in place of data/.
    steps
        Steps in all: of A, then B and C.
    warm_up
        The first so many are on the source alone, A without B and C.
    generator_steps
        How often C is done in a step.
    batch_size, learning_rate
        Rows of each domain a step; of Adam, for all three, falling in a straight line to 0 at the last step.

    Raises
    ------
    TypeError
        If `model` is not an `AdaptationNetwork`.
    """
    if not isinstance(model, AdaptationNetwork):
        raise TypeError(
            f"train: the model must be an AdaptationNetwork (adaptation_network:build), got {type(model).__name__}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rival = copy.deepcopy(model.classifier)
        for part in (model, rival):
            reset(part)
        on_source = source_train(seed=seed, source=source, target=target, root=root)
        on_target = target_train(seed=seed, source=source, target=target, root=root)
        learner = _Discrepancy(model.generator, (model.classifier, rival), learning_rate)
        slower = [LinearLR(one, 1.0, 0.0, total_iters=steps) for one in learner.optimisers]
        pairs = zip(_endless(on_source, batch_size), _endless(on_target, batch_size), strict=True)
        model.train()
        for step in range(1, steps + 1):
            (inputs, labels), (unlabelled, _) = next(pairs)
            loss = learner.classify(inputs, labels)
            if step > warm_up:
                learner.part(inputs, labels, unlabelled)
                for _ in range(generator_steps):
                    learner.align(unlabelled)
            for schedule in slower:
                schedule.step()
            if step % REPORT_EVERY == 0 or step in (warm_up, steps):
                report(f"step {step}/{steps}: source loss {loss:.4f}")
    model.eval()
    report(f"accuracy on the source's training rows {accuracy(model, on_source):.4f}")


class _Discrepancy:
    """The three steps, with an optimiser for the generator and one for the classifiers."""

    def __init__(self, generator: nn.Module, heads: Sequence[nn.Module], learning_rate: float) -> None:
        self._generator = generator
        self._heads = heads
        self.optimisers = self._of_generator, self._of_heads = [
            torch.optim.Adam([p for part in parts for p in part.parameters()], lr=learning_rate, weight_decay=DECAY)
            for parts in ([generator], heads)
        ]

    def classify(self, inputs: torch.Tensor, labels: torch.Tensor) -> float:
        """Step A; return the loss."""
        loss = self._cross_entropy(self._generator(inputs), labels)
        self._descend(loss, self._of_generator, self._of_heads)
        return float(loss.detach())

    def part(self, inputs: torch.Tensor, labels: torch.Tensor, unlabelled: torch.Tensor) -> None:
        """Step B."""
        with torch.no_grad():
            on_source, on_target = self._generator(inputs), self._generator(unlabelled)
        self._descend(
            self._cross_entropy(on_source, labels) - _discrepancy(self._probabilities(on_target)), self._of_heads
        )

    def align(self, unlabelled: torch.Tensor) -> None:
        """Step C, once."""
        both = self._probabilities(self._generator(unlabelled))
        self._descend(_discrepancy(both) + BALANCE * _imbalance(both), self._of_generator)

    def _cross_entropy(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        one, two = (functional.cross_entropy(head(features), labels) for head in self._heads)
        return one + two

    def _probabilities(self, features: torch.Tensor) -> list[torch.Tensor]:
        return [head(features).softmax(dim=1) for head in self._heads]

    def _descend(self, loss: torch.Tensor, *optimisers: torch.optim.Optimizer) -> None:
        """Step on `loss` with these optimisers' parameters alone: gradients of the others are not even computed."""
        moved = [one for optimiser in optimisers for group in optimiser.param_groups for one in group["params"]]
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward(inputs=moved)
        for optimiser in optimisers:
            optimiser.step()


def _discrepancy(both: Sequence[torch.Tensor]) -> torch.Tensor:
    one, two = both
    return (one - two).abs().sum(dim=1).mean()


def _imbalance(both: Sequence[torch.Tensor]) -> torch.Tensor:
    return -torch.stack([(one.mean(dim=0) + TINY).log().mean() for one in both]).sum()


def _endless(rows: Batches, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield whole batches for ever, the rows in a new random order each time round."""
    count = len(rows.labels)
    size = min(batch_size, count)
    while True:
        for picked in torch.randperm(count).split(size):
            if len(picked) == size:
                yield rows.inputs[picked], rows.labels[picked]
