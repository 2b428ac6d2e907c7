"""Retention policy `adakv`: any policy's scores, compared over all key-value heads of a layer.

A layer retains the K·G pairs of highest score; every head keeps at least its best fifth of K. Heads
that attend to few tokens leave their pairs to others.

Ada-KV: adaptive budget allocation (arXiv 2407.11550, algorithm 1). The registered name `adakv` uses
SnapKV's scores.
"""

from collections.abc import Mapping

from torch import Tensor

from infini.errors import InputError
from infini.memory.eviction.cascading import Cascading
from infini.memory.eviction.policy import (
    HeldPairs,
    LayerSize,
    RetentionPolicy,
    as_policy,
    register_policy,
)
from infini.memory.eviction.query_statistics import QueryStatistics
from infini.memory.eviction.snapkv import SnapKV


@register_policy("adakv")
class AdaKV(RetentionPolicy):
    """Retention policy that lets the heads of a layer share their pairs.

    Args:
        policy: Gives the scores, a registered name or an object; None: `snapkv`.
        min_share: Share of K pairs that every head keeps, between 0 and 1.

    Raises:
        InputError: The policy is "cascading", which does not rank pairs, or another AdaKV.
    """

    def __init__(self, policy: str | RetentionPolicy | None = None, min_share: float = 0.2):
        self.policy = SnapKV() if policy is None else as_policy(policy)
        if isinstance(self.policy, Cascading | AdaKV):
            raise InputError(f"adakv cannot have the scores of {self.policy.name!r}")
        self.min_share = min_share
        self.attention = self.policy.attention
        self.last_queries, self.query_decay = self.policy.last_queries, self.policy.query_decay
        self.state = self.policy.state
        self.state_covers_window = self.policy.state_covers_window

    def weight_shapes(self, size: LayerSize) -> dict[str, tuple[int, ...]]:
        return self.policy.weight_shapes(size)

    def fit(self, queries: QueryStatistics) -> dict[str, Tensor]:
        return self.policy.fit(queries)

    def pair_score(self, keys: Tensor, values: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        return self.policy.pair_score(keys, values, weights)

    def score(self, pairs: HeldPairs) -> Tensor:
        return self.policy.score(pairs)
