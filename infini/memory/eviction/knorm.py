"""Retention policy `knorm`: keys of small norm.

    score = −‖k‖

A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (arXiv 2406.11430,
section 3). No attention weights, no state.
"""

from collections.abc import Mapping

from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy


@register_policy("knorm")
class Knorm(RetentionPolicy):
    """Retention policy that ranks pairs by the norm of their key, the smallest first."""

    def pair_score(self, keys: Tensor, values: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        return -keys.norm(dim=-1)

    def score(self, pairs: HeldPairs) -> Tensor:
        return pairs.pair_scores
