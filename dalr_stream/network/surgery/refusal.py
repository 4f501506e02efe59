"""What keeps `from_pretrained` from loading a compressed network: it would do so with random layers, in silence.

It builds the original's layers, finds no weights for those that were replaced, and goes on with random ones. In a
configuration of transformers, `transformers_weights` names the file that `from_pretrained` is to read; a sentence in
its place is no such file, and is what the error says. Building a network from the configuration reads no weights.

So the sentence is written beside the weights by `save`, and by the compressed network's own `save_pretrained`, which
trainers call for their checkpoints. Other libraries have no such place: there `save_pretrained` raises.
"""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

from torch import nn

from dalr_stream.errors import InvalidInputError

CONFIG = "config.json"
KEY = "transformers_weights"
REFUSAL = (
    "this network was compressed by dalr_stream, and its layers are not those of its class: save it with "
    "dalr_stream.save(network, folder), and load it with dalr_stream.load(folder, build)"
)
_SAVE = "save_pretrained"


class _SavePretrained:
    """In the place of a compressed network's `save_pretrained`: the same, with the sentence in the configuration.

    The network holds it, so it must not hold the network: a circle keeps every network that was only tried in memory.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def __getstate__(self) -> nn.Module | None:
        """Return the network: copied and pickled with it, as a weak reference cannot be."""
        return self._model()

    def __setstate__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def __call__(self, save_directory: str | Path, *arguments: Any, **options: Any) -> Any:
        model: Any = self._model()
        if model is None or not is_pretrained(model):
            raise InvalidInputError(f"{_SAVE}: {REFUSAL}")
        saved = type(model).save_pretrained(model, save_directory, *arguments, **options)
        config = Path(save_directory) / CONFIG
        if config.is_file():  # a process that is not the main one writes none
            refuse_from_pretrained(config)
        return saved


def is_pretrained(model: nn.Module) -> bool:
    """Tell a transformers model by its looks: the library is not imported for it."""
    return hasattr(model, _SAVE) and hasattr(getattr(model, "config", None), _SAVE)


def refuse_own_saves(model: nn.Module) -> None:
    """Let `save_pretrained` of a compressed network, and of its parts, write nothing that loads as something else."""
    for module in model.modules():
        if hasattr(type(module), _SAVE):
            setattr(module, _SAVE, _SavePretrained(module))


def refuse_from_pretrained(config: Path) -> None:
    """Say in the `config.json` at `config` how the network is loaded, where `from_pretrained` must read it."""
    plain = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**plain, KEY: REFUSAL}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def forget_refusal(model: nn.Module) -> None:
    """Take the sentence out of the configuration of a network that was built from such a file and is loaded."""
    config: Any = getattr(model, "config", None)
    if getattr(config, KEY, None) == REFUSAL:
        delattr(config, KEY)
