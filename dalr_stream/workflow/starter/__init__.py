"""A first run file with the Python that it names: `dalr-stream init` writes them, and they run as they are.

The templates beside this file are what a user gets, to fill in with a network and data of their own. Files that exist
are not overwritten.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from string import Template

from dalr_stream.errors import ConfigError
from dalr_stream.workflow.starter.model_folder import ModelFolder

PLAIN, TRANSFORMERS = "plain", "transformers"
WORDS = {
    "texts": "sentences",
    "ids": "random token ids",
    "pictures": "random pictures",
}
"""What batches are made from, in words."""
NETWORK, BY_BLOCKS = "my_network.py", "my_network_by_blocks.py"
FILES = ("run.toml", NETWORK, "my_data.py")


def write_starter(folder: Path, transformers: Path | None = None, *, blocks: bool = False) -> list[Path]:
    """Write a run file and the Python it names into a folder, which is made where there is none.

    Parameters
    ----------
    folder
        Where they go.
    transformers
        What `save_pretrained` of transformers wrote: the network then comes from there; random tensors otherwise.
    blocks
        Have its weights read a block at a time, for a network that may be larger than memory.

    Returns
    -------
    list of Path
        The files, the run file first.

    Raises
    ------
    ConfigError
        Where one of the files exists, there is no `config.json` in `transformers`, or its network reads neither texts
        nor pictures; with `blocks`, where it does not give the next token.
    """
    wanted = [folder / name for name in FILES]
    for path in wanted:
        if path.exists():
            raise ConfigError(f"init: '{path}' exists and is not overwritten: name another folder")
    names = {"name": folder.resolve().name}
    if transformers is not None:
        names |= _names(transformers, blocks=blocks)
    elif blocks:
        raise ConfigError("init: --blocks reads what save_pretrained wrote: name that by --from-transformers")
    folder.mkdir(parents=True, exist_ok=True)
    for path in wanted:
        kept = BY_BLOCKS if blocks and path.name == NETWORK else path.name
        text = _template(PLAIN if transformers is None else TRANSFORMERS, kept)
        path.write_text(Template(text).substitute(names), encoding="utf-8")
    return wanted


def run_file_of(transformers: Path) -> str:
    """Return the run file that `write_starter` would write for a network of transformers."""
    names = {"name": transformers.resolve().name, **_names(transformers)}
    return Template(_template(TRANSFORMERS, FILES[0])).substitute(names)


def _names(transformers: Path, *, blocks: bool = False) -> dict[str, str]:
    """Return what stands in the templates for a network of transformers."""
    model, at = ModelFolder.read(transformers), json.dumps(str(transformers.resolve()))
    if blocks and not model.decodes:
        raise ConfigError(
            f"init: the network of '{transformers}' is scored against itself, uncompressed and whole, which --blocks "
            "does not load: leave --blocks out, or set network.blocks and network.weights, and a metric of your own"
        )
    own = ", build" if model.reads == "texts" else "\n\nfrom my_network import build"
    batches = Template(_template(TRANSFORMERS, f"{model.reads}.py"))
    measure = "perplexity" if model.decodes else "similarity"
    pictures = model.reads == "pictures"
    return {
        "model": at,
        "network": Template(_template(TRANSFORMERS, "blocks.toml" if blocks else "whole.toml")).substitute(model=at),
        "auto": model.auto,
        "layers": f'layers = ["{model.blocks}"]'.ljust(36),
        "what": WORDS[model.reads],
        "mask": "" if pictures else _template(TRANSFORMERS, "mask.toml"),
        "rows": "patches of each picture" if pictures else "tokens of each text",
        "distance": _template(TRANSFORMERS, "distance.toml") if model.decodes else "",
        "evaluate": _template(TRANSFORMERS, f"{measure}.toml"),
        "batches": batches.substitute(model.numbers, also="" if model.decodes else own).rstrip("\n"),
        "metric": _template(TRANSFORMERS, f"{measure}.py").rstrip("\n"),
    }


def _template(kind: str, name: str) -> str:
    return (resources.files(__package__) / kind / f"{name}.txt").read_text(encoding="utf-8")
