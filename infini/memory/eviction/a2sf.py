"""Retention policy `a2sf`: the attention that a pair has received, forgotten token by token.

    score ← α^C · score + Σ over the block's queries t of α^(last − t) · attention to the pair

A2SF: Accumulative Attention Scoring with Forgetting Factor (arXiv 2407.20485, equation 6). Prior
art of `decayed_attention`, which takes the largest attention of a block instead of the sum.
"""

from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy

FORGETTING_FACTOR = 0.99  # α, per token


@register_policy("a2sf")
class A2SF(RetentionPolicy):
    """Retention policy that ranks pairs by their attention, with exponential forgetting.

    Args:
        forgetting_factor: α, per token, between 0 and 1.
    """

    attention = "sum"
    state = ("score",)
    state_covers_window = True

    def __init__(self, forgetting_factor: float = FORGETTING_FACTOR):
        self.query_decay = forgetting_factor

    def score(self, pairs: HeldPairs) -> Tensor:
        assert pairs.block_attention is not None
        decay = self.query_decay**pairs.block_size
        pairs.state["score"] = decay * pairs.state["score"] + pairs.block_attention
        return pairs.state["score"]
