"""Retention policy `knorm`: keys of small norm.

    score = −‖k‖

A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression (arXiv 2406.11430,
section 3). No attention weights, no state.
"""

from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy


@register_policy("knorm")
class Knorm(RetentionPolicy):
    """Retention policy that ranks pairs by the norm of their key, the smallest first."""

    def score(self, pairs: HeldPairs) -> Tensor:
        return -pairs.keys.norm(dim=-1)
