"""Training: learn the source (code) from nothing, then fine-tune the whole network on the target (prose).

Both by AdamW, every parameter free, the learning rate up for a tenth of the steps and then down to nothing. Everything
random comes from ``seed`` inside a forked generator, so the caller's random state is as it was. Test and validation
prose is never loaded here, and training never stops early: the last step is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

from schedules import Schedule
from text_data import PADDING, Batches, CodeUse, code, inputs_and_targets, lengths, target_train
from text_metrics import bits_per_character, next_character_accuracy
from text_network import TextNetwork

BATCH = 32
DECAY = 0.01
"""Weight decay: AdamW's own default."""
WARMING = 0.1
"""Share of the steps in which the learning rate rises; two steps at least."""
LARGEST_GRADIENT = 1.0
"""Norm to which a gradient is cut."""
POOL = 16
"""Batches among which texts are sorted by length: a batch of like lengths is half as wide as one of any."""
REPORT_EVERY = 100
"""Steps between two progress lines."""


def train(  # noqa: PLR0913 - each is an option of the run file
    model: nn.Module,
    *,
    seed: int,
    report: Callable[[str], None],
    source_samples: int | None = 12_000,
    source_epochs: int = 1,
    source_learning_rate: float = 3e-3,
    target_samples: int | None = None,
    target_epochs: int = 2,
    target_learning_rate: float = 2e-3,
) -> None:
    """Train ``model`` (of `text_network.build`) in place, source then target; it is left in evaluation mode.

    Deterministic for a seed on one machine with one number of threads. The starting weights come from ``seed`` too,
    not from the model as given.

    Parameters
    ----------
    model
        A `TextNetwork`.
    seed
        Decides the starting weights, which code and prose is trained on, and the order of the texts.
    report
        Takes a line every hundred steps, and one at the end of each domain.
    source_samples, source_epochs, source_learning_rate
        How the source is learnt; None for all the code of training, about three times as much.
    target_samples, target_epochs, target_learning_rate
        How the target is learnt; all the prose of training by default.

    Raises
    ------
    TypeError
        If ``model`` is not a `TextNetwork`.
    """
    if not isinstance(model, TextNetwork):
        raise TypeError(f"train: the model must be a TextNetwork (text_network:build), got {type(model).__name__}")
    on_source = Schedule(source_epochs, source_learning_rate)
    on_target = Schedule(target_epochs, target_learning_rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.reset_weights()
        programs = code(CodeUse.TRAINING, seed, samples=source_samples, batch_size=BATCH)
        unseen = code(CodeUse.CHECKING, seed, samples=None, batch_size=BATCH)
        learn(model, programs, on_source, lambda line: report(f"source {line}"))
        report(f"source: {_standing(model, unseen)} on unseen code")
        prose = target_train(seed=seed, samples=target_samples, batch_size=BATCH)
        learn(model, prose, on_target, lambda line: report(f"target {line}"))
        report(f"target: {_standing(model, prose)} on this prose")


def learn(model: TextNetwork, texts: Batches, schedule: Schedule, report: Callable[[str], None]) -> None:
    """Run the schedule; each report is of the steps since the last one."""
    steps = schedule.epochs * len(texts)
    if steps < 4:
        raise ValueError(
            f"training: needs at least four steps of {texts.batch_size} texts, got {len(texts.texts)} texts"
        )
    optimiser = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, weight_decay=DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, schedule.learning_rate, total_steps=steps, pct_start=max(WARMING, 2 / steps), cycle_momentum=False
    )
    model.train()
    total = 0.0
    for step, (inputs, targets) in enumerate(_shuffled(texts, schedule.epochs), start=1):
        optimiser.zero_grad()
        loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=PADDING)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimiser.step()
        rate.step()
        total += loss.item()
        if step % REPORT_EVERY == 0:
            report(f"step {step}/{steps}: loss {total / REPORT_EVERY:.4f}")
            total = 0.0
    model.eval()


def _shuffled(texts: Batches, epochs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the batches of every epoch: texts of like length together, batches in random order."""
    length = lengths(texts.texts)
    for _ in range(epochs):
        batches: list[torch.Tensor] = []
        for pool in torch.randperm(len(length)).split(POOL * texts.batch_size):
            batches += pool[length[pool].argsort(stable=True)].split(texts.batch_size)
        for number in torch.randperm(len(batches)).tolist():
            yield inputs_and_targets(texts.texts[batches[number]])


def _standing(model: nn.Module, texts: Batches) -> str:
    accuracy, bits = next_character_accuracy(model, texts), bits_per_character(model, texts)
    return f"accuracy {accuracy:.4f}, {bits:.3f} bits per character"
