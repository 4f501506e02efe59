"""Turns published VGG19 weights into safetensors, the one format this project reads weights from.

    python pipelines/vgg19/vgg19_convert.py vgg19-dcbb9e9d.pth data/vgg19.safetensors
    python pipelines/vgg19/vgg19_convert.py birds_vgg19_net.mat data/birds_vgg19.safetensors

The first file is the one behind `torchvision.models.VGG19_Weights.IMAGENET1K_V1` (574,673,361 bytes). It is read with
`weights_only=True`, so nothing in it is executed; every tensor must be there in its shape, and the digits in its name,
where it has them, must begin its SHA-256. The second is the DALR authors' network, fine-tuned on birds by MatConvNet
(`vgg19_matconvnet.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

import torch

from dalr_stream.errors import DalrStreamError, InvalidInputError
from dalr_stream.network import save_weights
from vgg19_matconvnet import load, read
from vgg19_network import CONVOLUTIONS, VGG, build, convolutions_of


def convert(published: Path, target: Path, model: VGG | None = None) -> None:
    """Write the weights in ``published`` to ``target``; ``model`` says which there must be, by default VGG19's."""
    if not published.is_file():
        raise InvalidInputError(f"there is no '{published}': fetch the weights that torchvision publishes for VGG19")
    if published.suffix == ".mat":
        save_weights(_from_matconvnet(published, model), target)
        return
    _require_digest(published)
    model = model or build()
    weights = torch.load(published, map_location="cpu", weights_only=True)
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"'{published}' does not hold the weights of VGG19: {error}") from None
    save_weights(model, target)


def _from_matconvnet(published: Path, model: VGG | None) -> VGG:
    """Return a network filled from a MATLAB file; VGG19 with as many classes as the file has, where none is given."""
    blocks = CONVOLUTIONS if model is None else convolutions_of(model)
    layers = read(published, blocks)
    _, biases = list(layers.values())[-1]
    model = model or build(classes=len(biases))
    load(model, layers, published)
    return model


def _require_digest(path: Path) -> None:
    """Compare the beginning of the SHA-256 to the one in the file's name: `vgg19-dcbb9e9d.pth`."""
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if named is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(named[1]):
        raise InvalidInputError(f"'{path}' is damaged: its SHA-256 begins with {found[:8]}, its name says {named[1]}")


def main() -> None:
    """Convert the file named on the command line."""
    parser = argparse.ArgumentParser(description="Published VGG19 weights as safetensors.")
    parser.add_argument("published", type=Path, help="vgg19-dcbb9e9d.pth or birds_vgg19_net.mat")
    parser.add_argument("target", type=Path, help="data/vgg19.safetensors")
    given = parser.parse_args()
    try:
        convert(given.published, given.target)
    except DalrStreamError as error:
        sys.exit(str(error))
    print(f"wrote {given.target}")


if __name__ == "__main__":
    main()
