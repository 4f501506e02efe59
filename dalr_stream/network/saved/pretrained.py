"""Weights as `save_pretrained` of transformers keeps them: a folder, with one safetensors file or several and an index.

The names in these files are not always the network's own: the library turns old ones into new ones as it loads. So the
network's own class reads its folder, which needs no import here, and what it found is held to the rule that holds for
single files: every tensor there, none left over, every shape right.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from dalr_stream.errors import FingerprintMismatchError, StoreDamagedError, StoreNotFoundError
from dalr_stream.network.saved.files import INDEX, WEIGHTS, weights_file
from dalr_stream.network.saved.pickled import pickled_beside
from dalr_stream.network.saved.shards import read_index
from dalr_stream.network.saved.weights import load_weights


def load_pretrained(model: nn.Module, path: Path) -> None:
    """Load weights into `model`, strictly, from a safetensors file or from a folder of `save_pretrained`.

    Nothing is downloaded, and no file but safetensors is read. Raises StoreNotFoundError, StoreDamagedError, and
    FingerprintMismatchError where the weights do not fit the model. A folder's tensors are held twice meanwhile.
    """
    kind: Any = type(model)
    if not path.is_dir() or not hasattr(kind, "from_pretrained"):
        load_weights(model, weights_file(path))
        return
    if not weights_file(path).exists():
        raise StoreNotFoundError(
            f"there are no weights at '{path / WEIGHTS}': save_pretrained writes them{pickled_beside(path / WEIGHTS)}"
        )
    if weights_file(path).name == INDEX:
        read_index(weights_file(path))
    try:
        loaded, facts = kind.from_pretrained(
            path,
            config=copy.deepcopy(model.config),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        _require_whole(facts, path)
        model.load_state_dict(loaded.state_dict())
    except SafetensorError as error:
        raise StoreDamagedError(f"'{path}' has a safetensors file that is not readable: {error}") from error
    except (RuntimeError, OSError, ValueError) as error:
        raise FingerprintMismatchError(f"'{path}' does not fit the network that was built: {error}") from error


def _require_whole(facts: dict[str, Any], path: Path) -> None:
    """Raise where transformers would go on with fresh weights in place of some, or leave some out."""
    words = {"missing_keys": "missing", "unexpected_keys": "left over", "mismatched_keys": "of another shape"}
    wrong = [f"{word} {', '.join(sorted(map(str, facts[key])))}" for key, word in words.items() if facts.get(key)]
    if wrong:
        raise FingerprintMismatchError(f"'{path}' does not fit the network that was built: {'; '.join(wrong)}")
