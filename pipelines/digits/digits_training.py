"""Training as the DALR paper does it (section 5.3): learn the source, change the classifier, fine-tune on the target.

1. The trunk of the given network (features, `fc6`, `fc7`) is trained on printed glyphs under a classifier of its own
   with hundreds of outputs, by AdamW.
2. That classifier is dropped. On the few target samples the features are frozen, `fc6` and `fc7` learn at 0.1 of the
   learning rate, and the network's own `fc8` starts fresh, by gradient descent with momentum.

Everything random comes from ``seed`` inside a forked generator, so the caller's random state is as it was. The test
split is never loaded here, and training never stops early: the last epoch is the result.

Five source epochs are what the time of a demo allows, and leave much of the weights as they were drawn. Twenty (seed 0)
reach 0.90 on unseen glyphs instead of 0.83; DALR's lead stays (`fc6` at a 1 % drop: rank 16, truncated SVD 48).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

from dalr_stream.network import accuracy
from digits_data import GLYPH_CLASSES, GLYPH_FACES, TARGET_SAMPLES, SourceUse, source_glyphs, target_train
from digits_network import GlyphNetwork
from labelled_batches import Batches
from schedules import Schedule

TRUNK_MULTIPLIER = 0.1
"""Learning rate of `fc6` and `fc7` in fine-tuning, relative to that of `fc8` (section 5.3)."""
SOURCE_DECAY = 0.01
TARGET_DECAY = 5e-4
"""Weight decay: AdamW's own default (decoupled) on the source; that of VGG (in the gradient) on the target."""
MOMENTUM = 0.9
SOURCE_BATCH = 128
TARGET_BATCH = 50
CHECK_SAMPLES = 4000
"""Fresh glyphs on which the source accuracy is reported; nothing is chosen by it."""
REPORT_EVERY = 10
"""Target epochs between two progress lines."""


def train(  # noqa: PLR0913 - each is an option of the run file
    model: nn.Module,
    *,
    seed: int,
    report: Callable[[str], None],
    classes: int = GLYPH_CLASSES,
    faces: int = GLYPH_FACES,
    source_samples: int = 50_000,
    source_epochs: int = 5,
    source_learning_rate: float = 1e-3,
    digits: str = "sklearn",
    target_samples: int = TARGET_SAMPLES,
    target_epochs: int = 60,
    target_learning_rate: float = 0.02,
) -> GlyphNetwork:
    """Train ``model`` (of `digits_network.build`) in place, source then target; it is left in evaluation mode.

    Deterministic for a seed on one machine with one number of threads. The starting weights come from ``seed`` too,
    not from the model as given. The digits are those of `digits_data.target_train` with the same ``seed``, ``digits``
    and ``target_samples``: give both the same, or test digits are trained on.

    Parameters
    ----------
    model
        A `GlyphNetwork`.
    seed
        Decides the starting weights, the glyphs, the split of the digits, the order of the rows and dropout.
    report
        Takes one line after each source epoch and after every tenth target epoch.
    classes, faces
        Letters of the source, and the most faces of each.
    source_samples, source_epochs, source_learning_rate
        How the source is learnt; the pictures are drawn once and shown ``source_epochs`` times.
    digits, target_samples, target_epochs, target_learning_rate
        How the target is learnt; the learning rate is that of `fc8`.

    Returns
    -------
    The network as the source left it, with the source's own classifier: what the claims are tested on before the move.

    Raises
    ------
    TypeError
        If ``model`` is not a `GlyphNetwork`.
    """
    if not isinstance(model, GlyphNetwork):
        raise TypeError(f"train: the model must be a GlyphNetwork (digits_network:build), got {type(model).__name__}")
    on_source = Schedule(source_epochs, source_learning_rate)
    on_target = Schedule(target_epochs, target_learning_rate)
    letters = {"classes": classes, "faces": faces}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.reset_weights()
        glyphs = source_glyphs(SourceUse.TRAINING, seed, source_samples, batch_size=SOURCE_BATCH, **letters)
        unseen = source_glyphs(SourceUse.CHECKING, seed, CHECK_SAMPLES, batch_size=SOURCE_BATCH, **letters)
        report(f"source: {source_samples} printed glyphs of {classes} letters")
        classifier = train_on_source(model, glyphs, unseen, on_source, report)
        of_source = copy.deepcopy(model)
        of_source.fc8 = classifier
        handwritten = target_train(seed=seed, digits=digits, samples=target_samples, batch_size=TARGET_BATCH)
        report(f"target: {target_samples} handwritten digits, features frozen")
        fine_tune(model, handwritten, on_target, report)
    return of_source.eval()


def train_on_source(
    model: GlyphNetwork, glyphs: Batches, unseen: Batches, schedule: Schedule, report: Callable[[str], None]
) -> nn.Linear:
    """Train the trunk on glyphs under a classifier of their own, which is returned; ``model.fc8`` is left untouched."""
    own_classifier = model.fc8
    glyph_classifier = nn.Linear(own_classifier.in_features, int(glyphs.labels.max()) + 1)
    model.fc8 = glyph_classifier
    try:
        model.requires_grad_(requires_grad=True)
        optimiser = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, weight_decay=SOURCE_DECAY)
        for epoch, loss in _descend(model, model.__call__, glyphs, optimiser, schedule):
            share = accuracy(model.eval(), unseen)
            report(f"source epoch {epoch}/{schedule.epochs}: loss {loss:.4f}, accuracy on unseen glyphs {share:.4f}")
    finally:
        model.fc8 = own_classifier
    return glyph_classifier


def fine_tune(model: GlyphNetwork, digits: Batches, schedule: Schedule, report: Callable[[str], None]) -> None:
    """Fine-tune on the target with the features frozen; since they do not change, they are computed once."""
    model.features.requires_grad_(requires_grad=False)
    model.eval()
    with torch.no_grad():
        flat = model.flatten(model.features(digits.inputs))
    trunk = [*model.fc6.parameters(), *model.fc7.parameters()]
    optimiser = torch.optim.SGD(
        [
            {"params": trunk, "lr": TRUNK_MULTIPLIER * schedule.learning_rate},
            {"params": list(model.fc8.parameters()), "lr": schedule.learning_rate},
        ],
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=TARGET_DECAY,
    )
    rows = Batches(flat, digits.labels, digits.batch_size)
    for epoch, loss in _descend(model, model.classify, rows, optimiser, schedule):
        if epoch % REPORT_EVERY == 0 or epoch == schedule.epochs:
            share = accuracy(model.eval(), digits)
            report(f"target epoch {epoch}/{schedule.epochs}: loss {loss:.4f}, accuracy on these digits {share:.4f}")
    model.eval()


def _descend(
    model: nn.Module,
    scores: Callable[[torch.Tensor], torch.Tensor],
    rows: Batches,
    optimiser: torch.optim.Optimizer,
    schedule: Schedule,
) -> Iterator[tuple[int, float]]:
    """Run the schedule, rows in a new random order each epoch; after each, yield its number (from 1) and mean loss."""
    n = len(rows.labels)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=len(rows) * schedule.epochs)
    for epoch in range(1, schedule.epochs + 1):
        model.train()
        total = 0.0
        for picked in torch.randperm(n).split(rows.batch_size):
            optimiser.zero_grad()
            loss = functional.cross_entropy(scores(rows.inputs[picked]), rows.labels[picked])
            loss.backward()
            optimiser.step()
            falling.step()
            total += loss.item() * len(picked)
        yield epoch, total / n
