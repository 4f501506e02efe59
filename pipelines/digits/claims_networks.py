"""The two networks of a seed that claims are tested on: as the source left it, and after the move to the target.

Trained once as `run.toml` trains (`digits_training.train`), four times as long on the source, and kept below `runs/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

import digits_training
from digits_data import GLYPH_CLASSES, Batches, SourceUse, source, source_glyphs, target_test, target_train
from digits_network import build
from kept_results import digest_of, kept_weights

TEST_GLYPHS = 2000
"""Fresh glyphs that the source network is judged on."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A network, the rows its statistics come from, and the labelled rows it is judged on: no row is both."""

    network: nn.Module
    statistics: Batches
    test: Batches


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the experiment is."""

    network: tuple[tuple[str, int], ...] = ()
    """Options of `digits_network.build` that differ from its own."""
    training: tuple[tuple[str, float], ...] = (("source_epochs", 20),)
    """Options of `digits_training.train` that differ from its own."""
    classes: int = GLYPH_CLASSES
    statistics: int = 4000
    """Glyphs for the source's statistics."""
    digits: str = "mnist"
    """Of which data set: with MNIST's no two seeds share a digit."""


def domains(seed: int, folder: Path, scale: Scale, report: Callable[[str], None]) -> tuple[Domain, Domain]:
    """Return the source with its own network, and the target with the network that was moved there.

    Weights are read from `folder` where they were trained there from the same settings and code, else trained.
    """
    options = dict(scale.network)
    networks = {"source": build(outputs=scale.classes, **options), "target": build(**options)}

    def teach() -> None:
        training = {"classes": scale.classes, "digits": scale.digits, **dict(scale.training)}
        on_source = digits_training.train(networks["target"], seed=seed, report=report, **training)
        networks["source"].load_state_dict(on_source.state_dict())

    trained_by = digest_of({"seed": seed, **asdict(scale)}, digits_training.train, build)
    kept_weights(folder, trained_by, networks, teach)
    on_source, on_target = networks["source"], networks["target"]
    fresh = source_glyphs(
        SourceUse.CHECKING, seed, TEST_GLYPHS, classes=scale.classes, faces=digits_training.GLYPH_FACES, batch_size=500
    )
    glyphs = source(seed=seed, samples=scale.statistics, classes=scale.classes)
    return (
        Domain(on_source.eval(), glyphs, fresh),
        Domain(
            on_target.eval(),
            target_train(seed=seed, digits=scale.digits),
            target_test(seed=seed, digits=scale.digits),
        ),
    )
