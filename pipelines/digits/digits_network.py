"""The network: convolutional features, then `fc6`, `fc7` and `fc8`, the layout of AlexNet and VGG in small.

`fc6` and `fc7` hold nearly all parameters and are what the demo compresses; `fc8` is the classifier, replaced when
the network changes domain. Plain modules in a plain order: torch.fx traces it, and nothing in it depends on the batch.
"""

from __future__ import annotations

import torch
from torch import nn

SIDE = 8
"""Side of the input pictures."""


class GlyphNetwork(nn.Module):
    """Pictures (n, 1, 8, 8) to class scores (n, outputs).

    Parameters
    ----------
    channels
        Feature maps of the two convolutions.
    width
        Outputs of `fc6` and of `fc7`; `fc6` takes 16 x channels[1] inputs.
    outputs
        Classes.
    dropout
        Share of `fc6` and `fc7` units set to zero in training; evaluation has none.
    """

    def __init__(self, *, channels: tuple[int, int], width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        first, second = channels
        self.features = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.flatten = nn.Flatten()
        self.fc6 = nn.Linear(second * (SIDE // 2) ** 2, width)
        self.relu6 = nn.ReLU()
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = nn.Linear(width, width)
        self.relu7 = nn.ReLU()
        self.drop7 = nn.Dropout(dropout)
        self.fc8 = nn.Linear(width, outputs)

    def reset_weights(self) -> None:
        """Draw all weights anew from torch's global generator: He initialisation, biases 0.

        torch's own default is 2.4 times smaller, at which so plain a stack learns nothing for its first epochs.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Class scores; soft-max is the loss's."""
        return self.classify(self.flatten(self.features(pictures)))

    def classify(self, flat: torch.Tensor) -> torch.Tensor:
        """Class scores from flattened features: what is fine-tuned, when the features are frozen."""
        hidden = self.drop6(self.relu6(self.fc6(flat)))
        hidden = self.drop7(self.relu7(self.fc7(hidden)))
        scores: torch.Tensor = self.fc8(hidden)
        return scores


def build(
    *, first_channels: int = 24, second_channels: int = 48, width: int = 768, outputs: int = 10, dropout: float = 0.3
) -> GlyphNetwork:
    """Build the network, untrained, the same weights at every call; the global random state is left as it was.

    By default `fc6` and `fc7` are 768 x 768 each. Options as for `GlyphNetwork`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = GlyphNetwork(
            channels=(first_channels, second_channels), width=width, outputs=outputs, dropout=dropout
        )
        network.reset_weights()
        return network
