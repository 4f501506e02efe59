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
        Where one of the files exists, there is no `config.json` in `transformers`, or its network reads neither texts
        nor pictures.
    """
    wanted = [folder / name for name in FILES]
    for path in wanted:
        if path.exists():
            raise ConfigError(f"init: '{path}' exists and is not overwritten: name another folder")
    names = {"name": folder.resolve().name}
    if transformers is not None:
        names |= _names(transformers)
    folder.mkdir(parents=True, exist_ok=True)
    for path in wanted:
        text = _template(PLAIN if transformers is None else TRANSFORMERS, path.name)
        path.write_text(Template(text).substitute(names), encoding="utf-8")
    return wanted


def run_file_of(transformers: Path) -> str:
    """Return the run file that `write_starter` would write for a network of transformers."""
    names = {"name": transformers.resolve().name, **_names(transformers)}
    return Template(_template(TRANSFORMERS, FILES[0])).substitute(names)


def _names(transformers: Path) -> dict[str, str]:
    """Return what stands in the templates for a network of transformers."""
    model = ModelFolder.read(transformers)
    own = ", build" if model.reads == "texts" else "\n\nfrom my_network import build"
    batches = Template(_template(TRANSFORMERS, f"{model.reads}.py"))
    measure = "perplexity" if model.decodes else "similarity"
    pictures = model.reads == "pictures"
    return {
        "model": json.dumps(str(transformers.resolve())),
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
