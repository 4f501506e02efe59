"""Weights that torch pickled, `.pth`, `.pt` and `.bin`: they are not read, and the message says how to convert them.

Unpickling can run whatever the file's author wrote; nothing that this package reads is executed.
"""

from __future__ import annotations

from pathlib import Path

_PICKLED = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
"""How files of `torch.save` begin: a zip archive, or, from old versions, a pickle."""
_SAFE = "model.safetensors"
_OF_TORCH = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""What `save_pretrained` of transformers wrote before it wrote safetensors."""


def is_pickled(path: Path) -> bool:
    """Tell a file of `torch.save`, in either of its forms, by how it begins."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8).startswith(_PICKLED)


def pickled_beside(path: Path) -> str:
    """Return what to do where a folder has weights in a form that is not read; empty where it has none."""
    found = next((path.parent / name for name in _OF_TORCH if (path.parent / name).is_file()), None)
    return "" if found is None else f"; '{found.name}' there is not read: {conversion(found)}"


def conversion(path: Path) -> str:
    """Return how to make safetensors of a file of weights."""
    target = path.with_suffix(".safetensors") if path.name not in _OF_TORCH else path.with_name(_SAFE)
    return (
        f"convert it once, with safetensors.torch.save_file({{name: tensor.clone() for name, tensor in "
        f"torch.load('{path.name}', weights_only=True).items()}}, '{target.name}'), and name that"
    )
