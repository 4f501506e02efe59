"""Which parameters are trained, and a network in which nothing else changes meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from dalr_stream.errors import UnsupportedLayerError
from dalr_stream.network.layers.kinds import CONVOLUTIONS, why_not
from dalr_stream.network.layers.patterns import match_names
from dalr_stream.network.training.epochs import Trained

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def trained_parameters(model: nn.Module, patterns: Sequence[str] = ()) -> Trained:
    """Return the parameters of the modules that match, each once, in the network's order.

    Without patterns: those of every fully connected layer.

    Raises LayerNotFoundError for a pattern that matches no module, UnsupportedLayerError where nothing can be trained.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if patterns:
        modules_to_train = {name for pattern in patterns for name in match_names(pattern, modules)}
    else:
        modules_to_train = {name for name, module in model.named_modules() if _is_fully_connected(module)}
    trained: dict[nn.Parameter, str] = {}
    for name, module in model.named_modules():
        if name in modules_to_train:
            for inner, parameter in module.named_parameters(prefix=name):
                trained.setdefault(parameter, inner)
    if not trained:
        asked = ", ".join(f"'{pattern}'" for pattern in patterns) or "the fully connected layers"
        raise UnsupportedLayerError(f"fine-tuning: {asked} have no parameter to train: name other layers")
    return {name: parameter for parameter, name in trained.items()}


def touched(model: nn.Module, patterns: Sequence[str], *, dropout: bool) -> tuple[str, ...]:
    """Return the names of the parameters that are trained, and of the modules that drop: before them nothing changes.

    Raises as `trained_parameters` does.
    """
    dropping = [name for name, module in model.named_modules() if dropout and isinstance(module, _DROPOUT)]
    return (*trained_parameters(model, patterns), *dropping)


def require_all_trained(model: nn.Module, part: nn.Module, patterns: Sequence[str]) -> None:
    """Raise UnsupportedLayerError where `part` of a network has not all of what is trained in the whole of it."""
    missing = trained_parameters(model, patterns).keys() - trained_parameters(part, patterns).keys()
    if missing:
        raise UnsupportedLayerError(f"'{min(missing)}' is trained, and its torch.fx graph has no such layer of its own")


def _is_fully_connected(module: nn.Module) -> bool:
    return why_not(module) is None and not isinstance(module, CONVOLUTIONS)


@contextmanager
def only_trained(model: nn.Module, patterns: Sequence[str], *, dropout: bool) -> Iterator[Trained]:
    """Freeze all but what is trained; on leaving, modes and frozen parameters are as they were, without gradients."""
    trained = trained_parameters(model, patterns)
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
