"""A probe: what a network gives for one made-up sample, by which captures of different networks are recognised.

A fingerprint sees weights and settings; what else decides the outputs, a function put in the place of another, a global
number, an adapter's state in a library's own object, shows in the outputs alone. The sample has the form of the first
batch and none of its content, so that captures of other data can be compared: words are the first two of the
vocabulary, in at most `WORDS` places; pictures and features are drawn by a fixed seed; masks leave nothing out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dalr_stream.network.capture.batches import call, form_of, inputs_of, names_mask, tensors_in
from dalr_stream.network.capture.reading import same_draws, without_gradients
from dalr_stream.numerics.rows.probe import Probe

WORDS = 4
PROBE_PASSES = 1
"""Forward passes that a probe takes, of one sample."""
PROJECTIONS = 4
_SEED = 20
_COARSE = (torch.float16, torch.bfloat16)


def probe_of(model: nn.Module, batch: Any, samples: int) -> Probe | None:
    """Return what `model` gives for a made-up sample of a batch's form; None where it takes no such sample.

    Cost: a forward pass of one sample; two where the network wants as many words as the batch has.
    """
    for words in (WORDS, None):
        inputs = _made_up(inputs_of(batch), samples, words)
        try:
            with same_draws(model), without_gradients():
                outputs = tensors_in(_plain(call(model, inputs)))
        except Exception:  # noqa: BLE001, S112  # whatever it is: a made-up sample may be none that the network takes
            continue
        if outputs and all(bool(output.isfinite().all()) for output in outputs):
            coarse = any(output.dtype in _COARSE for output in outputs)
            return Probe(form_of(inputs), tuple(number for output in outputs for number in _numbers(output)), coarse)
    return None


def _plain(outputs: Any) -> Any:
    return dict(outputs) if hasattr(outputs, "items") else outputs


def _numbers(output: torch.Tensor) -> tuple[float, ...]:
    """Return the root of an output's mean square, and random projections that differ by as much as outputs do."""
    flat = output.detach().cpu().double().reshape(-1)
    directions = torch.randn(PROJECTIONS, flat.numel(), generator=_generator(), dtype=torch.float64)
    size = max(flat.numel(), 1) ** 0.5
    return (float(flat.norm() / size), *(float(value) for value in directions @ flat / size))


def _made_up(inputs: torch.Tensor | Mapping[str, Any], samples: int, words: int | None) -> Any:
    if isinstance(inputs, torch.Tensor):
        return _sample("ids", inputs, samples, _clipper(inputs, words))
    ids = next((value for key, value in inputs.items() if _are_ids(key, value)), None)
    clip = _clipper(ids, words) if ids is not None else _as_it_is
    return {
        key: _sample(key, value, samples, clip) if isinstance(value, torch.Tensor) else value
        for key, value in inputs.items()
    }


def _are_ids(key: str, value: Any) -> bool:
    whole = isinstance(value, torch.Tensor) and not value.is_floating_point() and value.dtype != torch.bool
    return whole and value.ndim == 2 and "ids" in key and "type" not in key and "position" not in key


Clip = Callable[[torch.Tensor], torch.Tensor]


def _clipper(ids: torch.Tensor, words: int | None) -> Clip:
    """Return what leaves the first `words` places along every dimension that is as long as the texts."""
    if words is None or ids.ndim != 2 or ids.is_floating_point() or ids.shape[1] <= words:
        return _as_it_is
    length = ids.shape[1]

    def clip(tensor: torch.Tensor) -> torch.Tensor:
        for dimension in range(1, tensor.ndim):
            if tensor.shape[dimension] == length:
                tensor = tensor.narrow(dimension, 0, words)
        return tensor

    return clip


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _sample(key: str, tensor: torch.Tensor, samples: int, clip: Clip) -> torch.Tensor:
    """Return one sample in the place of a tensor's; what belongs to no sample stays as it is, but for its length."""
    if not tensor.ndim or len(tensor) not in (1, samples):
        return tensor
    one = clip(tensor[:1])
    if tensor.dtype == torch.bool or names_mask(key):
        return torch.ones_like(one)
    if tensor.is_floating_point():
        return torch.randn(one.shape, generator=_generator()).to(one)
    if "position" in key:
        return one.clone()
    every_second = torch.arange(one.shape[-1] if one.ndim else 1, device=one.device) % 2
    return torch.zeros_like(one) + (every_second.to(one.dtype) if _are_ids(key, tensor) else 0)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)
