"""What of other networks in packages can be compressed, and the message for what cannot.

pip install --no-deps silero-vad resemblyzer; python pipelines/real_networks/refusals.py
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "shared")]

import torch  # noqa: E402
from torch import nn  # noqa: E402

import dalr_stream as ds  # noqa: E402
from dalr_stream.errors import ConfigError, UnsupportedLayerError  # noqa: E402
from dalr_stream.network import parameter_count, weights_of  # noqa: E402
from package_files import file_of, tensors_of  # noqa: E402


class VoiceEncoder(nn.Module):
    """Resemblyzer's (Wan et al. 2018): spectra (N, T, 40) to embeddings (N, 256) by three recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, spectra: torch.Tensor) -> torch.Tensor:
        """(N, T, 40) to (N, 256)."""
        _, (hidden, _) = self.lstm(spectra)
        return nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)


def voices() -> nn.Module:
    """Build the voice encoder of the package resemblyzer."""
    network = VoiceEncoder()
    state = tensors_of("resemblyzer", "pretrained.pt", install="--no-deps resemblyzer")["model_state"]
    network.load_state_dict({name: one for name, one in state.items() if not name.startswith("similarity_")})
    return network.eval()


def speech() -> nn.Module:
    """Return the network of the package silero-vad, which is scripted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated
        scripted = torch.jit.load(str(file_of("silero_vad", "data/silero_vad.jit", install="--no-deps silero-vad")))
    network: nn.Module = scripted.eval()
    return network


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {"silero-vad": speech, "resemblyzer": voices}


def said(network: nn.Module) -> Iterator[str]:
    """Yield one line for the layers that go in, and one for each that does not."""
    try:
        layers = ds.watch(network, ["*"])
    except UnsupportedLayerError as error:
        yield f"refused: {error}"
    else:
        share = sum(weights_of(network, layer.name)[0].size for layer in layers) / parameter_count(network)
        yield f"goes in: {', '.join(layer.name for layer in layers)}, {share:.0%} of all parameters"
    yield from ds.unsupported_layers(network, ["*"])


def main() -> None:
    """Print what is said of each network."""
    for name, build in NETWORKS.items():
        try:
            print(f"{name}\n  " + "\n  ".join(said(build())))
        except ConfigError as error:
            print(f"{name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
