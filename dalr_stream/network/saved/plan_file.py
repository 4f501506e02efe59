"""What lies beside the weights of a compressed network: how it came about, for programs and for people.

    plan.json     how to give a freshly built network its shape, what identifies the weights, and where it came from
    README.md     the same for people, with what each layer was before and is now
    config.json   of a transformers model: what it is built from

All of it is said of a network whose weights are on disk already; the network itself may be on the meta device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from dalr_stream.errors import (
    FingerprintMismatchError,
    LayerNotFoundError,
    StoreDamagedError,
    StoreNotFoundError,
    UnsupportedLayerError,
)
from dalr_stream.network.saved.files import PLAN, README, file_digest, is_of_weights, weights_file
from dalr_stream.network.saved.model_card import readme
from dalr_stream.network.saved.ordinary import ordinary_config
from dalr_stream.network.saved.settings import require_same_settings, settings_of
from dalr_stream.network.saved.ties import tied_parameters, untie
from dalr_stream.network.surgery.compress import PLAN_ATTRIBUTE, parameter_bytes, parameter_count
from dalr_stream.network.surgery.holders import modules_by_name, replaced_modules, require_released
from dalr_stream.network.surgery.origin import ORIGIN_ATTRIBUTE, Origin
from dalr_stream.network.surgery.plan import KeepNodes, SurgeryPlan
from dalr_stream.network.surgery.refusal import (
    CONFIG,
    forget_refusal,
    is_pretrained,
    refuse_from_pretrained,
    refuse_own_saves,
)
from dalr_stream.storage.json_record import digest_of

DIGEST, TIED, BESIDE, SETTINGS = "digest", "tied", "beside_sha256", "settings"


def describe(model: nn.Module, folder: Path, provenance: Mapping[str, Any] | None) -> None:
    """Write what is said of `model` into a folder that has its weights, the plan last."""
    plan: SurgeryPlan = getattr(model, PLAN_ATTRIBUTE, SurgeryPlan())
    origin, where_from = Origin.of(model), dict(provenance or {})
    facts: dict[str, Any] = {"parameters": parameter_count(model), "bytes": parameter_bytes(model)}
    facts["before"] = {"parameters": origin.parameters, "bytes": origin.bytes}
    own = ordinary_config(model, plan) if is_pretrained(model) else None
    page = readme(model, origin, plan, where_from, ordinary=own is not None)
    (folder / README).write_text(page, encoding="utf-8")
    if is_pretrained(model):
        (cast("Any", model.config) if own is None else own).save_pretrained(folder)
        if plan.steps and own is None:
            refuse_from_pretrained(folder / CONFIG)
    facts["weights_sha256"] = file_digest(weights_file(folder))
    beside = sorted(path for path in folder.iterdir() if not is_of_weights(path.name) and path.name != PLAN)
    facts[BESIDE] = {path.name: file_digest(path) for path in beside}
    told = {"plan": plan.to_plain(), TIED: tied_parameters(model), **facts, "provenance": where_from}
    told[SETTINGS] = settings_of(model)
    plain = json.loads(json.dumps(told))
    text = json.dumps({**plain, DIGEST: digest_of(plain)}, indent=1)
    (folder / PLAN).write_text(text + "\n", encoding="utf-8")


def read_plan(folder: Path) -> dict[str, Any]:
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


def require_head(folder: Path, plain: Mapping[str, Any]) -> Path:
    """Return the file of weights, or the index that says which files there are; raises where it is not what was saved.

    An index has the digest of each file, so that what it names can be compared when it is read.
    """
    head = weights_file(folder)
    if not head.is_file():
        raise StoreNotFoundError(f"there are no weights at '{head}'")
    if file_digest(head) != plain["weights_sha256"]:
        raise StoreDamagedError(f"'{head}' is damaged: it does not match its digest; save it again")
    return head


def reshape(model: nn.Module, plain: Mapping[str, Any], folder: Path) -> None:
    """Give a freshly built network the shape and the ties of the one that was saved; its numbers do not count.

    Raises FingerprintMismatchError where the plan is not one of this network, or the network is set otherwise.
    """
    plan = SurgeryPlan.from_plain(plain["plan"])
    if TIED in plain:
        untie(model, plain[TIED])
    origin, before = Origin.of(model), modules_by_name(model)
    try:
        narrow = plan.is_applied(model)
        if not narrow:
            plan.apply(model)
        require_released(model, replaced_modules(before, model))
    except (LayerNotFoundError, UnsupportedLayerError) as error:
        raise FingerprintMismatchError(f"'{folder}' does not fit the network that was built: {error}") from error
    setattr(model, PLAN_ATTRIBUTE, plan)
    setattr(model, ORIGIN_ATTRIBUTE, origin)
    if SETTINGS in plain:
        sizes = {(str(step.channels), str(step.kept)) for step in plan.steps if isinstance(step, KeepNodes)}
        require_same_settings(model, plain[SETTINGS], folder, sizes if narrow else ())


def done_loading(model: nn.Module) -> nn.Module:
    """Return a network whose weights are those that were saved, in eval mode; its own saves are refused."""
    forget_refusal(model)
    if getattr(model, PLAN_ATTRIBUTE).steps:
        refuse_own_saves(model)
    return model.eval()
