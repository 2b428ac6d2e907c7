"""Retention policy `decayed_attention`, the default: peak attention, with exponential decay.

    score ← SCORE_DECAY · score + max over the block's queries of the attention to the pair

Heavy hitters (H2O, arXiv 2306.14048) whose score decays, as in A2SF (arXiv 2407.20485), there per
token and with a sum over queries. A pair without any attention is not retained.
"""

import torch
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy

SCORE_DECAY = 0.77  # per block of 32 tokens: half is left after 85 tokens


@register_policy("decayed_attention")
class DecayedAttention(RetentionPolicy):
    """Retention policy that ranks pairs by their decayed peak attention.

    Args:
        score_decay: Factor on a pair's score per block.
    """

    attention = "max"
    state = ("score",)
    state_covers_window = True

    def __init__(self, score_decay: float = SCORE_DECAY):
        self.score_decay = score_decay

    def score(self, pairs: HeldPairs) -> Tensor:
        assert pairs.block_attention is not None
        score = self.score_decay * pairs.state["score"] + pairs.block_attention
        pairs.state["score"] = score
        return score.where(score > 0, -torch.inf)
