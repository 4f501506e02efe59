"""Saving a compressed network so that anyone with the original's source can load it.

    model.safetensors    the weights
    plan.json            how to give a freshly built network its shape, and where it came from
    README.md            the same for people, with what each layer was before and is now
    config.json          of a transformers model: what it is built from, so that `load` needs no other file

Loading executes nothing that was read: the caller builds the original network, the plan reshapes it, and the weights
are loaded strictly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import safe_open
from safetensors.torch import save_model
from torch import nn

from dalr_stream.errors import (
    FingerprintMismatchError,
    InvalidInputError,
    LayerNotFoundError,
    StoreDamagedError,
    StoreNotFoundError,
    UnsupportedLayerError,
)
from dalr_stream.network.saved.model_card import readme
from dalr_stream.network.saved.settings import require_same_settings, settings_of
from dalr_stream.network.saved.ties import tied_parameters, untie
from dalr_stream.network.saved.weights import as_os_error, load_weights, require_tensors_alone
from dalr_stream.network.surgery.compress import PLAN_ATTRIBUTE, parameter_bytes, parameter_count
from dalr_stream.network.surgery.holders import modules_by_name, replaced_modules, require_released
from dalr_stream.network.surgery.origin import ORIGIN_ATTRIBUTE, Origin
from dalr_stream.network.surgery.plan import SurgeryPlan
from dalr_stream.network.surgery.refusal import (
    CONFIG,
    forget_refusal,
    is_pretrained,
    refuse_from_pretrained,
    refuse_own_saves,
)
from dalr_stream.storage.durable import new_folder, remove_folder
from dalr_stream.storage.json_record import digest_of

DIGEST, TIED, BESIDE, SETTINGS = "digest", "tied", "beside_sha256", "settings"
WEIGHTS, PLAN, README = "model.safetensors", "plan.json", "README.md"


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
    _require_own(folder)
    require_tensors_alone(model)
    plan: SurgeryPlan = getattr(model, PLAN_ATTRIBUTE, SurgeryPlan())
    origin, where_from = Origin.of(model), dict(provenance or {})
    facts: dict[str, Any] = {"parameters": parameter_count(model), "bytes": parameter_bytes(model)}
    facts["before"] = {"parameters": origin.parameters, "bytes": origin.bytes}
    with new_folder(folder) as fresh:
        with as_os_error():
            save_model(model, str(fresh / WEIGHTS))
        (fresh / README).write_text(readme(model, origin, plan, where_from), encoding="utf-8")
        if is_pretrained(model):
            cast("Any", model.config).save_pretrained(fresh)
            if plan.steps:
                refuse_from_pretrained(fresh / CONFIG)
        facts["weights_sha256"] = _file_digest(fresh / WEIGHTS)
        beside = sorted(path for path in fresh.iterdir() if path.name != WEIGHTS)
        facts[BESIDE] = {path.name: _file_digest(path) for path in beside}
        told = {"plan": plan.to_plain(), TIED: tied_parameters(model), **facts, "provenance": where_from}
        told[SETTINGS] = settings_of(model)
        plain = json.loads(json.dumps(told))
        text = json.dumps({**plain, DIGEST: digest_of(plain)}, indent=1)
        (fresh / PLAN).write_text(text + "\n", encoding="utf-8")
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
    plain = _verified(folder)
    plan = SurgeryPlan.from_plain(plain["plan"])
    model = build()
    if TIED in plain:
        untie(model, plain[TIED])
    origin, before = Origin.of(model), modules_by_name(model)
    try:
        plan.apply(model)
        require_released(model, replaced_modules(before, model))
    except (LayerNotFoundError, UnsupportedLayerError) as error:
        raise FingerprintMismatchError(f"'{folder}' does not fit the network that was built: {error}") from error
    setattr(model, PLAN_ATTRIBUTE, plan)
    if SETTINGS in plain:
        require_same_settings(model, plain[SETTINGS], folder)
    _require_same_dtypes(model, folder / WEIGHTS)
    setattr(model, ORIGIN_ATTRIBUTE, origin)
    load_weights(model, folder / WEIGHTS)
    forget_refusal(model)
    if plan.steps:
        refuse_own_saves(model)
    return model.eval()


def provenance(folder: Path) -> dict[str, Any]:
    """Return what was kept beside the network in `folder`; raises as `load` where the network is not what was saved."""
    facts: dict[str, Any] = _verified(folder)["provenance"]
    return facts


def require_unchanged(folder: Path) -> None:
    """Raise StoreDamagedError where the page or the config beside the weights is not what was saved.

    `load` does not ask: a network whose page was rewritten is the same network.
    """
    for name, digest in _plan(folder).get(BESIDE, {}).items():  # networks of before have none
        if not (folder / name).is_file():
            raise StoreDamagedError(f"'{folder / name}' is not there; save it again")
        if _file_digest(folder / name) != digest:
            raise StoreDamagedError(f"'{folder / name}' is not what was saved; save it again")


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights in `folder`, as it was saved; raises as `load`."""
    return str(_plan(folder)["weights_sha256"])


def remove_remnant(folder: Path) -> None:
    """Remove what is left of a network whose plan is lost; only for a folder that nothing but `save` writes into.

    Elsewhere such files may be somebody's own: `save` refuses them.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names and PLAN not in names and names <= {WEIGHTS, README, CONFIG}:
        remove_folder(folder)


def _require_own(folder: Path) -> None:
    files = {path.name for path in folder.iterdir()} if folder.exists() else set()
    foreign = sorted(files - {WEIGHTS, PLAN, README, CONFIG}) if PLAN in files else sorted(files)
    if foreign:
        raise InvalidInputError(
            f"'{folder}' holds other files, which saving would replace, '{foreign[0]}' for one: choose a folder of its "
            "own, or move them elsewhere"
        )


def _require_same_dtypes(model: nn.Module, path: Path) -> None:
    """Raise FingerprintMismatchError where loading would round the weights, or make infinities of them, in silence."""
    state = model.state_dict()
    if not path.exists():
        return
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is a function, not a mapping
            saved = file.get_tensor(name).dtype
            if name in state and state[name].dtype != saved:
                raise FingerprintMismatchError(
                    f"'{path}' does not fit the network that was built: '{name}' was saved as {saved}, the network has "
                    f"{state[name].dtype}: build it in {saved}, and convert it after loading"
                )


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plan(folder: Path) -> dict[str, Any]:
    """Return `plan.json`, compared with its own digest; networks saved by 0.1 have none."""
    try:
        plain: dict[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        digest = plain.pop(DIGEST, None)
        SurgeryPlan.from_plain(plain["plan"])
        _ = plain["weights_sha256"], plain["provenance"]
    except FileNotFoundError:
        raise StoreNotFoundError(f"'{folder}' holds no compressed network: it has no {PLAN}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreDamagedError(f"'{folder / PLAN}' cannot be read: {error}") from error
    if digest not in (None, digest_of(plain)):
        raise StoreDamagedError(f"'{folder / PLAN}' is damaged: it does not match its digest; save it again")
    return plain


def _verified(folder: Path) -> dict[str, Any]:
    """Return `plan.json`, its weights compared with their digest."""
    plain = _plan(folder)
    if not (folder / WEIGHTS).exists():
        raise StoreNotFoundError(f"there are no weights at '{folder / WEIGHTS}'")
    if _file_digest(folder / WEIGHTS) != plain["weights_sha256"]:
        raise StoreDamagedError(f"'{folder / WEIGHTS}' is damaged: it does not match its digest; save it again")
    return plain
