"""A first run file with the Python that it names: `dalr-stream init` writes them, and they run as they are.

The templates beside this file are what a user gets, to fill in with a network and data of their own. Files that exist
are not overwritten.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from dalr_stream.errors import ConfigError

PLAIN, ENCODER = "plain", "transformers"
FILES = ("run.toml", "my_network.py", "my_data.py")


def write_starter(folder: Path, transformers: Path | None = None) -> list[Path]:
    """Write a run file and the Python it names into a folder, which is made where there is none.

    Parameters
    ----------
    folder
        Where they go.
    transformers
        What `save_pretrained` of transformers wrote: the network then comes from there; random tensors otherwise.

    Returns
    -------
    list of Path
        The files, the run file first.

    Raises
    ------
    ConfigError
        Where one of the files exists, or there is no `config.json` in `transformers`.
    """
    wanted = [folder / name for name in FILES]
    for path in wanted:
        if path.exists():
            raise ConfigError(f"init: '{path}' exists and is not overwritten: name another folder")
    names = {"name": folder.resolve().name, "model": "", "blocks": ""}
    if transformers is not None:
        names |= {"model": json.dumps(str(transformers.resolve())), "blocks": _blocks(transformers)}
    folder.mkdir(parents=True, exist_ok=True)
    templates = resources.files(__package__) / (PLAIN if transformers is None else ENCODER)
    for path in wanted:
        text = (templates / f"{path.name}.txt").read_text(encoding="utf-8")
        path.write_text(Template(text).substitute(names), encoding="utf-8")
    return wanted


def _blocks(folder: Path) -> str:
    """Return the pattern of the layers in a model's blocks: its longest list of modules."""
    if not (folder / "config.json").exists():
        raise ConfigError(f"init: there is no config.json in '{folder}': name what save_pretrained wrote")
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModel

    build: Any = AutoModel.from_config
    with torch.device("meta"):
        model = build(AutoConfig.from_pretrained(folder))
    lists = {name: len(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ConfigError(f"init: the network of '{folder}' has no list of blocks: write its layers yourself")
    return f"{max(lists, key=lists.__getitem__)}.*"
