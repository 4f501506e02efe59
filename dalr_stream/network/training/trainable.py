"""Which parameters are trained, and a network in which nothing else changes meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.kinds import CONVOLUTIONS, why_not
from dalr_stream.network.layers.pair import FactorPair
from dalr_stream.network.layers.patterns import match_names
from dalr_stream.network.training.epochs import Trained

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_UNNAMED = {"layers": "the fully connected layers", "factors": "the network's layers", "all": "the network's layers"}


class Train(StrEnum):
    """What of a network is trained."""

    LAYERS = "layers"
    """The layers that are named; every fully connected one where none is."""
    FACTORS = "factors"
    """The factors of each compressed layer, and every bias; within the layers that are named, where any are."""
    ALL = "all"
    """Everything."""


def trained_parameters(model: nn.Module, patterns: Sequence[str] = (), train: Train | str = Train.LAYERS) -> Trained:
    """Return the parameters that are trained of the modules that match, each once, in the network's order.

    Raises LayerNotFoundError for a pattern that matches no module, UnsupportedLayerError where nothing can be trained.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if patterns:
        modules_to_train = {name for pattern in patterns for name in match_names(pattern, modules)}
    elif train == Train.LAYERS:
        modules_to_train = {name for name, module in model.named_modules() if _is_fully_connected(module)}
    else:
        modules_to_train = {""}
    factors = {
        parameter for module in model.modules() if isinstance(module, FactorPair) for parameter in module.parameters()
    }
    trained: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        if name in modules_to_train:
            for inner, parameter in module.named_parameters(prefix=name):
                if train != Train.FACTORS or parameter in factors or _is_bias(inner):
                    trained.setdefault(parameter, inner)
    if not trained:
        asked = ", ".join(f"'{pattern}'" for pattern in patterns) or _UNNAMED[Train(train)]
        what = "factor and no bias" if train == Train.FACTORS else "parameter"
        raise UnsupportedLayerError(f"fine-tuning: {asked} have no {what} to train: name other layers")
    return {name: parameter for parameter, name in trained.items()}


def touched(model: nn.Module, patterns: Sequence[str], train: Train | str, *, dropout: bool) -> tuple[str, ...]:
    """Return the names of the parameters that are trained, and of the modules that drop: before them nothing changes.

    Raises as `trained_parameters` does.
    """
    dropping = [name for name, module in model.named_modules() if dropout and isinstance(module, _DROPOUT)]
    return (*trained_parameters(model, patterns, train), *dropping)


def require_all_trained(
    model: nn.Module, part: nn.Module, patterns: Sequence[str], train: Train | str = Train.LAYERS
) -> None:
    """Raise UnsupportedLayerError where `part` of a network has not all of what is trained in the whole of it."""
    missing = trained_parameters(model, patterns, train).keys() - trained_parameters(part, patterns, train).keys()
    if missing:
        raise UnsupportedLayerError(f"'{min(missing)}' is trained, and its torch.fx graph has no such layer of its own")


def _is_bias(name: str) -> bool:
    """Tell a bias by its name: `bias`, and `in_proj_bias` or `bias_ih_l0` of torch's own layers."""
    last = name.rpartition(".")[2]
    return last.startswith("bias") or last.endswith("bias")


def _is_fully_connected(module: nn.Module) -> bool:
    return why_not(module) is None and not isinstance(module, CONVOLUTIONS)


@contextmanager
def only_trained(model: nn.Module, patterns: Sequence[str], train: Train | str, *, dropout: bool) -> Iterator[Trained]:
    """Freeze all but what is trained; on leaving, modes and frozen parameters are as they were, without gradients."""
    trained = trained_parameters(model, patterns, train)
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval().zero_grad(set_to_none=True)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in trained.values():
        parameter.requires_grad = True
    for module in model.modules():
        if isinstance(module, _DROPOUT):
            module.train(dropout)
    yield trained
    model.zero_grad(set_to_none=True)
    for module, mode in modes:
        module.training = mode
    for parameter, needed in wanted:
        parameter.requires_grad = needed
