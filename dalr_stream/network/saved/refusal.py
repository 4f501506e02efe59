"""A saved configuration that `from_pretrained` of transformers refuses, with a line that says how to load the network.

It would build the original's layers, find no weights for those that were replaced, and go on with random ones. In a
configuration, `transformers_weights` names the file that `from_pretrained` is to read; a sentence in its place is no
such file, and is what the error says. Building a network from the configuration reads no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

KEY = "transformers_weights"
REFUSAL = (
    "this network was compressed by dalr_stream, and its layers are not those of its class: load it with "
    "dalr_stream.load(folder, build), as the README.md beside it says"
)


def refuse_from_pretrained(config: Path) -> None:
    """Say in the `config.json` at `config` how the network is loaded, where `from_pretrained` must read it."""
    plain = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**plain, KEY: REFUSAL}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def forget_refusal(model: nn.Module) -> None:
    """Take the sentence out of the configuration of a network that was built from such a file and is loaded."""
    config: Any = getattr(model, "config", None)
    if getattr(config, KEY, None) == REFUSAL:
        delattr(config, KEY)
