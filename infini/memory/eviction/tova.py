"""Retention policy `tova`: the attention of the last query, one choice for all heads of a layer.

    score = attention of the block's last query to the pair, mean over all query heads

TOVA: Token Omission Via Attention (arXiv 2401.06104, section 4), once per block.
"""

from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy


@register_policy("tova")
class TOVA(RetentionPolicy):
    """Retention policy that ranks pairs by the last query's attention; no state."""

    attention = "sum"
    last_queries = 1

    def score(self, pairs: HeldPairs) -> Tensor:
        assert pairs.block_attention is not None
        received = pairs.block_attention
        return received.mean(1, keepdim=True).expand_as(received)
