"""Retention policy `observed_attention`: H2O's sum, divided by the queries that saw the pair.

    score = Σ of the attention to the pair so far ÷ number of queries that could attend to it

`ObservedAttentionPress` of kvpress; the policy "h2o" of keys_values. Without the division, a
recent pair has had little time to collect attention.
"""

from torch import Tensor

from infini.memory.eviction.h2o import H2O
from infini.memory.eviction.policy import HeldPairs, register_policy


@register_policy("observed_attention")
class ObservedAttention(H2O):
    """Retention policy that ranks pairs by the mean attention they have received."""

    def score(self, pairs: HeldPairs) -> Tensor:
        return super().score(pairs) / pairs.num_queries_seen
