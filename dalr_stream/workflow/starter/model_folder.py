"""What `save_pretrained` of transformers wrote, as far as a first run file needs to know it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dalr_stream.errors import ConfigError

DECODERS = ("ForCausalLM", "LMHeadModel")
"""How the classes end that give the next token."""
LONGEST = 128
"""Tokens of a text, where the network takes as many."""
SIZE = 224
"""Of a picture, where the network takes any."""
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "*.model")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A network of transformers on disk."""

    auto: str
    """The class that builds it: with its head where that gives the next token, without otherwise."""
    blocks: str
    """A pattern of the layers in its blocks."""
    reads: str
    """What its batches are made from: `texts`, `ids` where no tokenizer is beside it, or `pictures`."""
    numbers: dict[str, int]
    """Settings that its batches depend on."""

    @property
    def decodes(self) -> bool:
        """Whether it gives the next token."""
        return self.auto == "AutoModelForCausalLM"

    @classmethod
    def read(cls, folder: Path) -> ModelFolder:
        """Look at a folder; raises ConfigError where there is no network in it, or one that reads something else."""
        auto, config, model = without_weights(folder)
        return cls(auto, _blocks(folder, model), _read_by(folder, config, model), _numbers(config))


def without_weights(folder: Path) -> tuple[str, Any, Any]:
    """Return the class that builds a network of transformers, its configuration, and it on the meta device.

    Raises ConfigError where transformers cannot.
    """
    if not (folder / "config.json").exists():
        raise ConfigError(f"there is no config.json in '{folder}': name what save_pretrained wrote")
    import torch

    try:
        import transformers
    except ModuleNotFoundError:
        raise ConfigError("transformers is not installed: pip install transformers") from None
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        classes = config.architectures or ()
        auto = "AutoModelForCausalLM" if any(name.endswith(DECODERS) for name in classes) else "AutoModel"
        with torch.device("meta"):
            return auto, config, getattr(transformers, auto).from_config(config)
    except Exception as error:  # whatever the classes of transformers raise at a configuration
        reason = " ".join(str(error).partition("\n\n")[0].split())
        raise ConfigError(
            f"transformers cannot build the network of '{folder / 'config.json'}' ({type(error).__name__}: "
            f"{reason}): correct it, or install a transformers that knows it"
        ) from error


def _blocks(folder: Path, model: Any) -> str:
    """Return the pattern of the layers in a model's blocks: its longest list of modules."""
    from torch import nn

    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ConfigError(f"the network of '{folder}' has no list of blocks: {_BY_HAND}")
    return f"{max(lists, key=lists.__getitem__)}.*"


def _read_by(folder: Path, config: Any, model: Any) -> str:
    if config.is_encoder_decoder:
        raise ConfigError(f"the network of '{folder}' reads two sequences, for encoder and decoder: {_BY_HAND}")
    if model.main_input_name == "pixel_values":
        return "pictures"
    if model.main_input_name != "input_ids":
        raise ConfigError(f"the network of '{folder}' reads '{model.main_input_name}': {_BY_HAND}")
    return "texts" if any(any(folder.glob(name)) for name in _TOKENIZERS) else "ids"


def _numbers(config: Any) -> dict[str, int]:
    size = getattr(config, "image_size", None)
    return {
        "vocabulary": getattr(config, "vocab_size", 0),
        "length": min(LONGEST, getattr(config, "max_position_embeddings", None) or LONGEST),
        "channels": getattr(config, "num_channels", 3),
        "size": size if isinstance(size, int) else SIZE,
    }


_BY_HAND = "run `dalr-stream init FOLDER` without --from-transformers, and put network and batches there"
