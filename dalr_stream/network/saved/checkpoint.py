"""Saving a compressed network so that anyone with the original's source can load it.

    model.safetensors    the weights; of a network that was written block by block several files, and their index
    plan.json            how to give a freshly built network its shape, and where it came from
    README.md            the same for people, with what each layer was before and is now
    config.json          of a transformers model: what it is built from, so that `load` needs no other file

Loading executes nothing that was read: the caller builds the original network, the plan reshapes it, and the weights
are loaded strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn

from dalr_stream.errors import InvalidInputError, StoreDamagedError
from dalr_stream.network.saved.files import PLAN, README, WEIGHTS, file_digest, is_of_weights
from dalr_stream.network.saved.fitting import require_same_types
from dalr_stream.network.saved.plan_file import BESIDE, describe, done_loading, read_plan, require_head, reshape
from dalr_stream.network.saved.shards import Shards
from dalr_stream.network.saved.weights import as_os_error, load_weights, require_tensors_alone
from dalr_stream.network.surgery.refusal import CONFIG
from dalr_stream.storage.durable import new_folder, remove_folder


def save(model: nn.Module, folder: str | Path, *, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write `model`, from `compress`, to `folder`: safetensors, the surgery as `plan.json`, and a model card.

    A transformers model, known by its `save_pretrained`, leaves its `config.json` beside the weights. A network kept
    there before is replaced whole.

    Parameters
    ----------
    model
        What `compress`, `compress_sequentially`, `finetune` or `load` returned.
    folder
        A new folder, or one that holds such a network already.
    provenance
        Any JSON-like mapping to keep and to show on the card.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InvalidInputError
        Where the folder holds anything else; nothing is touched.

    See Also
    --------
    load : reads it back.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3)).eval()
    >>> statistics = ds.accumulate(model, [torch.randn(32, 6)], ds.watch(model, ["0"]))
    >>> small = ds.compress(model, {"0": ds.dalr(statistics["0"]).at_rank(2)})
    >>> folder = ds.save(small, "small", provenance={"data": "birds"})
    >>> sorted(path.name for path in folder.iterdir())
    ['README.md', 'model.safetensors', 'plan.json']
    """
    folder = Path(folder)
    require_own(folder)
    require_tensors_alone(model)
    with new_folder(folder) as fresh:
        with as_os_error():
            save_model(model, str(fresh / WEIGHTS))
        describe(model, fresh, provenance)
    return folder


def load(folder: str | Path, build: Callable[[], nn.Module]) -> nn.Module:
    """Return the compressed network kept in `folder`, in eval mode.

    Parameters
    ----------
    folder
        What `save` wrote.
    build
        Called to make the original network, trained or not: its class, or a function without arguments.

    Returns
    -------
    torch.nn.Module
        The compressed network with its weights, of the original's class.

    Raises
    ------
    StoreNotFoundError, StoreDamagedError
        Where the folder, or a file in it, is missing or damaged.
    FingerprintMismatchError
        Where the weights do not fit the network that `build` made, or it is set otherwise than the saved one was.
    InvalidInputError
        Where `build` is a network rather than a function that makes one.

    See Also
    --------
    save : writes the folder.

    Examples
    --------
    >>> import torch, dalr_stream as ds
    >>> def build():
    ...     return torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))
    >>> model = build().eval()
    >>> statistics = ds.accumulate(model, [torch.randn(32, 6)], ds.watch(model, ["0"]))
    >>> _ = ds.save(ds.compress(model, {"0": ds.dalr(statistics["0"]).at_rank(2)}), "small")
    >>> ds.load("small", build)[0][0].out_features
    2
    """
    folder = Path(folder)
    if isinstance(build, nn.Module):
        raise InvalidInputError(
            f"load: needs a function that makes the original network, got a {type(build).__name__}: give its class, or "
            "lambda: the network as it was before compression"
        )
    plain, shards = _verified(folder)
    model = build()
    reshape(model, plain, folder)
    require_same_types(model, shards, {})
    load_weights(model, shards.head)
    return done_loading(model)


def provenance(folder: Path) -> dict[str, Any]:
    """Return what was kept beside the network in `folder`; raises as `load` where the network is not what was saved."""
    facts: dict[str, Any] = _verified(folder)[0]["provenance"]
    return facts


def parameters(folder: Path) -> int:
    """Return how many parameters the network in `folder` has; raises as `load` where its plan is damaged."""
    return int(read_plan(folder)["parameters"])


def require_unchanged(folder: Path) -> None:
    """Raise StoreDamagedError where the page or the config beside the weights is not what was saved.

    `load` does not ask: a network whose page was rewritten is the same network.
    """
    for name, digest in read_plan(folder).get(BESIDE, {}).items():  # networks of before have none
        if not (folder / name).is_file():
            raise StoreDamagedError(f"'{folder / name}' is not there; save it again")
        if file_digest(folder / name) != digest:
            raise StoreDamagedError(f"'{folder / name}' is not what was saved; save it again")


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights in `folder`, as it was saved; raises as `load`."""
    return str(read_plan(folder)["weights_sha256"])


def remove_remnant(folder: Path) -> None:
    """Remove what is left of a network whose plan is lost; only for a folder that nothing but `save` writes into.

    Elsewhere such files may be somebody's own: `save` refuses them.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and PLAN not in names and all(name in (README, CONFIG) or is_of_weights(name) for name in names):
        remove_folder(folder)


def require_own(folder: Path) -> None:
    """Raise InvalidInputError where a folder holds anything that `save` does not write, or cannot be replaced."""
    if folder.name in ("", "..") or (folder.exists() and not folder.is_dir()):
        what = "is a file" if folder.is_file() else "has no name of its own, and is replaced as a whole"
        raise InvalidInputError(f"'{folder}' {what}: name a new folder for the network")
    files = {path.name for path in folder.iterdir()} if folder.exists() else set()
    known = (
        {name for name in files if name in (PLAN, README, CONFIG) or is_of_weights(name)} if PLAN in files else set()
    )
    foreign = sorted(files - known)
    if foreign:
        raise InvalidInputError(
            f"'{folder}' holds other files, which saving would replace, '{foreign[0]}' for one: choose a folder of its "
            "own, or move them elsewhere"
        )


def _verified(folder: Path) -> tuple[dict[str, Any], Shards]:
    """Return `plan.json`, and the weights, compared with their digests."""
    plain = read_plan(folder)
    shards = Shards.open(require_head(folder, plain))
    shards.require_unchanged()
    return plain, shards
