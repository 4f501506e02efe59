"""The network: a decoder of transformer blocks that predicts the next character.

Every weight matrix of a block is a plain `nn.Linear`: `q_proj`, `k_proj`, `v_proj` and `out_proj` of the attention,
`fc1` and `fc2` of the feed-forward half. Padding stands at the end of a text and attention looks back only, so what a
character is predicted to be never depends on it; there is nothing to mask inside the network. torch.fx traces it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

CHARACTERS = 128
"""ASCII; 0 is padding and 1 the start of a text, and neither is ever predicted."""


class Block(nn.Module):
    """Attention and feed-forward, each behind a layer norm and added to what it read: (N, T, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        """Each position reads itself and those before it."""
        texts = texts + self.attend(self.attention_norm(texts))
        fed: torch.Tensor = self.fc2(self.gelu(self.fc1(self.feed_norm(texts))))
        return texts + fed

    def attend(self, read: torch.Tensor) -> torch.Tensor:
        """Causal attention of all heads, projected back to the width."""
        query, key, value = (
            project(read).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return projected


class TextNetwork(nn.Module):
    """Characters (N, T), int64, to scores of the next one (N, T, 128).

    Parameters
    ----------
    blocks, width, heads
        How many blocks, how wide they are, and how many heads share the width.
    context
        The longest text, in characters.
    """

    def __init__(self, *, blocks: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide the width {width}, got {heads}")
        self.characters = nn.Embedding(CHARACTERS, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS)

    def reset_weights(self) -> None:
        """Draw all weights anew from torch's global generator.

        Normal, 0.02, as in GPT-2; what is added to the running sum is scaled down by the root of how many there are.
        """
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            for added in (block.out_proj, block.fc2):
                nn.init.normal_(added.weight, std=0.02 * (2 * len(self.blocks)) ** -0.5)

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        """Scores of the next character at every position; soft-max is the loss's."""
        place = torch.ones_like(texts).cumsum(dim=1) - 1  # 0, 1, ... at any length, and torch.fx can trace it
        read = self.characters(texts) + self.places(place)
        for block in self.blocks:
            read = block(read)
        scores: torch.Tensor = self.head(self.norm(read))
        return scores


def build(*, blocks: int = 4, width: int = 128, heads: int = 4, context: int = 96) -> TextNetwork:
    """Build the network, untrained, the same weights at every call; the global random state is left as it was.

    Options as for `TextNetwork`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TextNetwork(blocks=blocks, width=width, heads=heads, context=context)
        network.reset_weights()
        return network
