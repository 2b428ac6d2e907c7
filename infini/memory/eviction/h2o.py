"""Retention policy `h2o`: the attention that a pair has received so far (heavy hitters).

    score ← score + Σ over the block's queries of the attention to the pair

H2O: Heavy-Hitter Oracle (arXiv 2306.14048, algorithm 1), mean over a group's query heads.
"""

from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy


@register_policy("h2o")
class H2O(RetentionPolicy):
    """Retention policy that ranks pairs by the sum of the attention they have received."""

    attention = "sum"
    state = ("score",)
    state_covers_window = True

    def score(self, pairs: HeldPairs) -> Tensor:
        assert pairs.block_attention is not None
        pairs.state["score"] = pairs.state["score"] + pairs.block_attention
        return pairs.state["score"]
