"""The weights of layers in a store, so that solving needs no network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dalr_stream.errors import StoreDamagedError
from dalr_stream.storage import schema
from dalr_stream.storage.contents import NO_BIAS, LayerRecord
from dalr_stream.storage.places.place import Place
from dalr_stream.storage.records.record import (
    REMEDY,
    Provenance,
    load_record,
    save_record,
)


def save_layer_weights(
    root: Place, layer: str, weight: NDArray[Any], bias: NDArray[Any] | None, provenance: Provenance
) -> None:
    """Keep a layer's weight (m, d) and bias (m,) in the store, so that solving needs no network."""
    arrays = {"weight": weight, "bias": np.zeros(weight.shape[0], weight.dtype) if bias is None else bias}
    save_record(weights_path(root, layer), schema.WEIGHTS, arrays, {}, provenance, names=1)


def weights_path(root: Place, layer: str) -> Place:
    """Return the folder of a layer's weights."""
    return root / "weights" / layer


def load_layer_weights(root: Place, layer: str, known: LayerRecord | None = None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read what `save_layer_weights` wrote; compared with what the manifest knows of the layer, where that is given."""
    path = weights_path(root, layer)
    arrays, _ = load_record(path, schema.WEIGHTS)
    if not {"weight", "bias"} <= arrays.keys():
        raise StoreDamagedError(f"'{path}' holds no weight and bias; {REMEDY}")
    weight, bias = arrays["weight"], arrays["bias"]
    if known is not None:
        for name, array, same in (
            ("weight", weight, is_weight_of(weight, known.weight_digest)),
            ("bias", bias, _is_bias_of(bias, known.bias_digest)),
        ):
            if not same:
                raise StoreDamagedError(
                    f"'{path}': {name} {array.shape} is not the one of layer '{layer}' that the store was made from: "
                    "delete the folder and capture again, which writes it again"
                )
    return weight, bias


def is_weight_of(weight: NDArray[Any], digest: str) -> bool:
    """Tell whether a weight as it is stored has the digest that the manifest has: of its dtype, shape and bytes.

    Half precision is stored as float32, and its digest is that of the narrow numbers.
    """
    return any(_weight_digest(dtype, array) == digest for dtype, array in _as_in_the_network(weight))


def _is_bias_of(bias: NDArray[Any], digest: str) -> bool:
    """Tell the same of a bias; where there is none, zeros are stored, and an older manifest knows nothing of it."""
    if digest in ("", NO_BIAS):
        return not (digest and bias.any())
    return is_weight_of(bias, digest)


def _as_in_the_network(weight: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield a stored weight in each dtype that it may have had in the network, by torch's name."""
    yield f"torch.{weight.dtype}", weight
    if weight.dtype == np.float32:  # only where nothing is lost: else other weights would pass for these
        with np.errstate(over="ignore"):
            half = weight.astype(np.float16)
        if np.array_equal(half, weight, equal_nan=True):
            yield "torch.float16", half
        bits = np.ascontiguousarray(weight).view(np.uint32)
        if not (bits & 0xFFFF).any():
            yield "torch.bfloat16", (bits >> 16).astype(np.uint16)


def _weight_digest(dtype: str, array: NDArray[Any]) -> str:
    digest = hashlib.sha256(f"{dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).data.cast("B"))
    return digest.hexdigest()
