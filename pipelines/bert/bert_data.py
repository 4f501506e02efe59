"""The two domains as batches for a transformer: (mapping of `input_ids` and `attention_mask`, labels).

Factories named in the run file: `target_train`, `target_test`, `target_validation`, `source`. Texts of a batch are
padded to its longest one, and the mask says which positions are text. The words come from a tokenizer that is trained
here on the training texts, or from one of the user's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_network import HERE, read_config
from bert_text import Text, sentences, statements
from dalr_stream.errors import ConfigError

SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
MOST_TOKENS = 32
VALIDATION = 600
"""Test sentences that are set apart to choose sizes on, where a run file asks for it."""

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class TokenBatches:
    """Texts in a fixed order as batches; iterating again gives the same ones."""

    tokens: Sequence[Sequence[int]]
    labels: torch.Tensor
    """(n,) int64."""
    batch_size: int
    padding: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def __iter__(self) -> Iterator[tuple[Inputs, torch.Tensor]]:
        for start in range(0, len(self.tokens), self.batch_size):
            yield self.batch(range(start, min(start + self.batch_size, len(self.tokens))))

    def __len__(self) -> int:
        return math.ceil(len(self.tokens) / self.batch_size)

    def batch(self, rows: Sequence[int]) -> tuple[Inputs, torch.Tensor]:
        """Return some of the texts as one batch: token numbers and mask (n, longest) int64, labels (n,)."""
        longest = max(len(self.tokens[row]) for row in rows)
        ids = torch.full((len(rows), longest), self.padding)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            length = len(self.tokens[row])
            ids[number, :length] = torch.tensor(self.tokens[row])
            mask[number, :length] = 1
        return {"input_ids": ids, "attention_mask": mask}, self.labels[list(rows)]


def target_train(*, seed: int, samples: int = 1500, batch_size: int = 50, tokenizer: str | None = None) -> TokenBatches:
    """Give docstring sentences to fine-tune and take statistics on."""
    return batches(sentences(seed, test=False)[:samples], seed, batch_size, tokenizer)


def target_test(
    *, seed: int, samples: int = 1500, validation: int = 0, batch_size: int = 100, tokenizer: str | None = None
) -> TokenBatches:
    """Give sentences of the other side of the split, after the first ``validation`` of them."""
    return batches(sentences(seed, test=True)[validation : validation + samples], seed, batch_size, tokenizer)


def target_validation(
    *, seed: int, validation: int = VALIDATION, batch_size: int = 100, tokenizer: str | None = None
) -> TokenBatches:
    """Give ``validation`` sentences to choose sizes on, which `target_test` with the same number leaves out."""
    return batches(sentences(seed, test=True)[:validation], seed, batch_size, tokenizer)


def source(*, seed: int, samples: int = 3000, batch_size: int = 50, tokenizer: str | None = None) -> TokenBatches:
    """Give statements of code."""
    return batches(statements(seed)[:samples], seed, batch_size, tokenizer)


def batches(texts: Sequence[Text], seed: int, batch_size: int, tokenizer: str | None) -> TokenBatches:
    """Turn texts into tokens, at most `MOST_TOKENS` of each.

    `tokenizer` is a `tokenizer.json` relative to this file, as the tokenizers library and transformers write it; None
    for the pipeline's own.
    """
    found = _own(seed) if tokenizer is None else _given(HERE / tokenizer)
    found.enable_truncation(MOST_TOKENS)
    found.no_padding()
    encoded = found.encode_batch([text.words for text in texts])
    padding = found.token_to_id(SPECIAL[0]) or 0
    return TokenBatches([one.ids for one in encoded], torch.tensor([text.topic for text in texts]), batch_size, padding)


def _given(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ConfigError(f"tokenizer: there is no file '{path}'; nothing is downloaded")
    return Tokenizer.from_file(str(path))


def _own(seed: int) -> Tokenizer:
    return Tokenizer.from_str(_trained(seed, int(read_config("config.json")["vocab_size"])))


@cache
def _trained(seed: int, size: int) -> str:
    """Train byte pairs on the code and on the training side of the prose, `size` of them (a second); return the JSON.

    Not BERT's word pieces: the library numbers these in another order in every process.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*statements(seed), *sentences(seed, test=False)]
    tokenizer.train_from_iterator((text.words for text in texts), trainer)
    around = [(name, tokenizer.token_to_id(name)) for name in SPECIAL[1:]]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return str(tokenizer.to_str())
