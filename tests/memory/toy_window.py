"""Inputs of window attention, and plain references of its rotation and softmax."""

import torch
from torch import Tensor

from infini.memory.local import RotaryEmbedding

B, H, G, D, V = 2, 4, 2, 6, 5
ROTARY = RotaryEmbedding(D)


def turn(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate x, (B, H, T, D), as complex numbers; halves are paired."""
    first, second = x.double().chunk(2, -1)
    angles = positions[:, None, :, None].double() * ROTARY.frequencies.double()
    z = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([z.real, z.imag], -1).to(x.dtype)


def softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention with grouped heads: (n, C, H, V)."""
    k, v = (x.repeat_interleave(H // G, 1) for x in (k, v))
    scores = (q @ k.mT).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def tokens(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v in float64, seeded by the length."""
    torch.manual_seed(length)
    shapes = (B, H, length, D), (B, G, length, D), (B, G, length, V)
    q, k, v = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    return q, k, v
