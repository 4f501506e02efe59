"""How long and how fast to train."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """Passes over the rows, and the highest learning rate; how it changes on the way is the training's own."""

    epochs: int
    learning_rate: float

    def __post_init__(self) -> None:
        if self.epochs < 1 or not self.learning_rate > 0:
            raise ValueError(f"schedule: epochs must be at least 1 and the learning rate above 0, got {self}")
