"""Antibody sequences, recombined at random as the body does: a germline gene, a random loop, a joining gene, mutations.

Factories: `target` for statistics, of four germline genes, and `unseen` for scores, of two others. Residues are masked;
a batch holds what they were as `labels`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
PADDING, START, END, MASK, FIRST = 0, 2, 3, 4, 5
"""Tokens: amino acids are 5 and on, in alphabetical order of their letters."""
IGNORED = -100
GENES = {
    "IGHV3-23": "EVQLLESGGGLVQPGGSLRLSCAASGFTFSSYAMSWVRQAPGKGLEWVSAISGSGGSTYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAK",
    "IGHV1-69": "QVQLVQSGAEVKKPGSSVKVSCKASGGTFSSYAISWVRQAPGQGLEWMGGIIPIFGTANYAQKFQGRVTITADESTSTAYMELSSLRSEDTAVYYCAR",
    "IGHV4-34": "QVQLQQWGAGLLKPSETLSLTCAVYGGSFSGYYWSWIRQPPGKGLEWIGEINHSGSTNYNPSLKSRVTISVDTSKNQFSLKLSSVTAADTAVYYCAR",
    "IGHV5-51": "EVQLVQSGAEVKKPGESLKISCKGSGYSFTSYWIGWVRQMPGKGLEWMGIIYPGDSDTRYSPSFQGQVTISADKSISTAYLQWSSLKASDTAMYYCAR",
    "IGHV3-30": "QVQLVESGGGVVQPGRSLRLSCAASGFTFSSYAMHWVRQAPGKGLEWVAVISYDGSNKYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAVYYCAR",
    "IGHV1-2": "QVQLVQSGAEVKKPGASVKVSCKASGYTFTGYYMHWVRQAPGQGLEWMGWINPNSGGTNYAQKFQGRVTMTRDTSISTAYMELSRLRSDDTAVYYCAR",
}
"""Human heavy-chain germline genes."""
JOINING = ("FDYWGQGTLVTVSS", "FDIWGQGTMVTVSS", "MDVWGQGTTVTVSS")
UNSEEN = ("IGHV3-30", "IGHV1-2")
MUTATED, MASKED = 0.04, 0.15


@dataclass(frozen=True, slots=True)
class Sequences:
    """Batches of masked sequences, each padded to its longest."""

    residues: tuple[str, ...]
    seed: int
    batch_size: int

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        draw = random.Random(self.seed)  # noqa: S311  # a sample, not a secret
        for start in range(0, len(self.residues), self.batch_size):
            yield _masked(self.residues[start : start + self.batch_size], draw)

    def __len__(self) -> int:
        return math.ceil(len(self.residues) / self.batch_size)


def target(*, seed: int, samples: int = 240, batch_size: int = 20) -> Sequences:
    """Return sequences for statistics."""
    genes = [name for name in GENES if name not in UNSEEN]
    return Sequences(recombined(genes, 2 * seed, samples), 2 * seed, batch_size)


def unseen(*, seed: int, samples: int = 120, batch_size: int = 20) -> Sequences:
    """Return sequences of other genes."""
    return Sequences(recombined(UNSEEN, 2 * seed + 1, samples), 2 * seed + 1, batch_size)


def recombined(genes: Iterable[str], seed: int, samples: int) -> tuple[str, ...]:
    """Join genes, loops of 3 to 12 random residues and joining genes, and mutate some residues."""
    draw, names = random.Random(seed), list(genes)  # noqa: S311
    found = []
    for _ in range(samples):
        loop = "".join(draw.choices(AMINO_ACIDS, k=draw.randint(3, 12)))
        whole = GENES[draw.choice(names)] + loop + draw.choice(JOINING)
        found.append("".join(draw.choice(AMINO_ACIDS) if draw.random() < MUTATED else one for one in whole))
    return tuple(found)


def recovered(model: nn.Module, batches: Iterable[Mapping[str, torch.Tensor]]) -> float:
    """Return the share of masked residues that the network thinks likeliest."""
    right = total = 0
    with torch.inference_mode():
        for batch in batches:
            labels = batch["labels"]
            given = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.argmax(-1)
            right += int((given == labels).sum())
            total += int((labels != IGNORED).sum())
    return right / total


def _masked(residues: tuple[str, ...], draw: random.Random) -> dict[str, torch.Tensor]:
    longest = max(map(len, residues)) + 2
    tokens = torch.full((len(residues), longest), PADDING)
    labels = torch.full((len(residues), longest), IGNORED)
    for row, sequence in enumerate(residues):
        numbers = [FIRST + AMINO_ACIDS.index(one) for one in sequence]
        tokens[row, : len(numbers) + 2] = torch.tensor([START, *numbers, END])
        for place, number in enumerate(numbers, start=1):
            if draw.random() < MASKED:
                tokens[row, place], labels[row, place] = MASK, number
    return {"input_ids": tokens, "attention_mask": (tokens != PADDING).long(), "labels": labels}
