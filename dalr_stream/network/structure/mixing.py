"""What the dimensions of a head are mixed by, to see that nothing depends on which basis they are in."""

from __future__ import annotations

import torch

from dalr_stream.numerics.heads.layout import HeadLayout


def mixing(size: int, generator: torch.Generator) -> torch.Tensor:
    """Return a rotation, then factors of 1/2 to 2: of condition 4 at most."""
    rotation: torch.Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    factors = torch.exp2(2 * torch.rand(size, 1, generator=generator, dtype=torch.float64) - 1)
    return factors * rotation


def mixing_but_pairs(layout: HeadLayout, generator: torch.Generator) -> torch.Tensor:
    """Return a map that turns and scales each pair within itself, and mixes the dimensions that are not rotated."""
    rotated, made = layout.rotated, torch.zeros(layout.size, layout.size, dtype=torch.float64)
    if rotated < layout.size:
        made[rotated:, rotated:] = mixing(layout.size - rotated, generator)
    one, other = torch.from_numpy(layout.pairs).T
    radius, angle = torch.rand(2, rotated // 2, generator=generator, dtype=torch.float64)
    radius, angle = torch.exp2(2 * radius - 1), 2 * torch.pi * angle
    made[one, one] = made[other, other] = radius * angle.cos()
    made[one, other], made[other, one] = -radius * angle.sin(), radius * angle.sin()
    return made
