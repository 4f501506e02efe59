"""Runs a transformers model without its cache of keys and values, which would grow with every block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_SETTING = "use_cache"


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """Turn the cache off in the configuration of a network and of its parts; on leaving it is as it was."""
    configs: dict[int, Any] = {id(config): config for config in _configs(model)}
    before = {key: config.use_cache for key, config in configs.items()}
    try:
        for config in configs.values():
            config.use_cache = False
        yield
    finally:
        for key, config in configs.items():
            config.use_cache = before[key]


def _configs(model: nn.Module) -> Iterator[Any]:
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and isinstance(getattr(config, _SETTING, None), bool):
            yield config
