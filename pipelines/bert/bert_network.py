"""The network: any sequence classifier of transformers, built from a configuration on this disk.

Nothing is fetched: a configuration is read as plain JSON, and the library builds the class that it names. Weights come
from the run file, `network.weights` (a safetensors file, or the folder that `save_pretrained` wrote), or from training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dalr_stream.errors import ConfigError

HERE = Path(__file__).parent
FILE = "config.json"


def build(*, config: str | Mapping[str, Any] = FILE, seed: int = 0) -> nn.Module:
    """Build the network, untrained, the same weights at every call; the global random state is left as it was.

    Parameters
    ----------
    config
        A JSON file or a folder with a `config.json`, relative to this file; or the configuration itself, a mapping.
        Its `model_type` names the architecture (`bert`, `distilbert`, `roberta`, ...), its `id2label` the classes.
    seed
        Of the weights.

    Raises
    ------
    ConfigError
        Where the configuration or transformers is missing, or the library knows no such sequence classifier.
    """
    try:
        from transformers import AutoConfig, AutoModelForSequenceClassification
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"network.build: transformers is not installed ({error}): pip install 'dalr_stream[transformers]'"
        ) from None
    plain = dict(config) if isinstance(config, Mapping) else read_config(config)
    kind = plain.pop("model_type", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            settings = type(AutoConfig.for_model(kind)).from_dict(plain)
            network: nn.Module = AutoModelForSequenceClassification.from_config(settings)
        except ValueError as error:
            first = str(error).splitlines()[0]
            raise ConfigError(f"network.options.config: model_type {kind!r} makes no classifier: {first}") from None
    return network


def read_config(named: str) -> dict[str, Any]:
    """Read a JSON file, or the `config.json` of a folder; raises ConfigError where there is none."""
    path = HERE / named
    path = path / FILE if path.is_dir() else path
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"network.options.config: there is no file '{path}'; nothing is downloaded") from None
    except ValueError as error:
        raise ConfigError(f"network.options.config: '{path}' is not JSON: {error}") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"network.options.config: '{path}' must hold an object, it holds a {type(plain).__name__}")
    return plain
