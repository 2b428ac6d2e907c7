"""The attention that a text's next queries really pay: the ceiling of every retention policy.

It looks ahead, so it is no policy to use, and has no registered name.
"""

import torch
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy

BLOCK_DISCOUNT = 0.9


class Oracle(RetentionPolicy):
    """Retention policy that ranks pairs by the attention of the blocks to come.

        score = Σ over later blocks b of discount^(b - 1) · squared attention in block b,

    b = 1 being the next block.

    Args:
        future_attention: Squared attention that a block's queries pay to each token, by layer:
            (B, G, N, T), N blocks, T tokens.
        discount: Per block.
    """

    def __init__(self, future_attention: dict[int, Tensor], discount: float = BLOCK_DISCOUNT):
        self.scores = {}
        for layer, attention in future_attention.items():
            sums, total = torch.empty_like(attention), torch.zeros_like(attention[:, :, 0])
            for block in reversed(range(attention.shape[2])):
                sums[:, :, block] = total  # of the blocks after this one
                total = discount * total + attention[:, :, block]
            self.scores[layer] = sums

    def score(self, pairs: HeldPairs) -> Tensor:
        block = pairs.block_start // pairs.block_size
        scores = self.scores[pairs.layer_index][:, :, block]
        return scores.gather(2, pairs.positions.clamp(min=0))
