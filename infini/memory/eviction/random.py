"""Retention policy `random`: every pair has the same chance to stay, the floor of all policies."""

import torch
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy


@register_policy("random")
class Random(RetentionPolicy):
    """Retention policy that ranks pairs by a hash of their position, layer and head.

    So the retained pairs are a uniform sample of all that have left the window, however the text
    is split into calls, and no state is needed.

    Args:
        seed: Another seed draws another sample.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def score(self, pairs: HeldPairs) -> Tensor:
        heads = torch.arange(pairs.positions.shape[1], device=pairs.positions.device)
        x = pairs.positions + (heads[:, None] + 1) * 0x9E3779B1
        x = x + (pairs.layer_index + 1) * 0x85EBCA77 + self.seed * 0xC2B2AE3D
        for _ in range(2):  # a 32-bit integer hash
            x = ((x ^ (x >> 16)) * 0x045D9F3B) & 0xFFFFFFFF
        return ((x ^ (x >> 16)) & 0xFFFFFF).float()
