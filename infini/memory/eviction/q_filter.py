"""Retention policy `q_filter`: keys along the main direction of the queries.

    score = ⟨u, k⟩, u the first right singular vector of a layer's queries, towards their mean

Q-Filters (arXiv 2503.02812, section 3). Queries are those of `infini.fit_policy`, at the positions
that follow; the heads of a group share a direction. No attention weights, no state.
"""

import torch
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, LayerSize, RetentionPolicy, register_policy
from infini.memory.eviction.query_statistics import QueryStatistics


@register_policy("q_filter")
class QFilter(RetentionPolicy):
    """Retention policy that ranks pairs by their key's part along the queries' main direction."""

    def weight_shapes(self, size: LayerSize) -> dict[str, tuple[int, ...]]:
        return {"direction": (size.kv_heads, size.key_width)}

    def fit(self, queries: QueryStatistics) -> dict[str, Tensor]:
        """Return the direction of each key-value head."""
        # square roots of the second moments: their rows stand for the queries
        values, vectors = torch.linalg.eigh(queries.second_moment)
        rows = (vectors * values.clamp_min(0).sqrt()[:, None]).mT  # (H, D, D)
        rotated = queries.rotated(rows)  # (H, D, T, D)
        moment = torch.einsum("hntd,hnte->hde", rotated, rotated) / rotated.shape[2]
        by_group = moment.unflatten(0, (queries.kv_heads, -1)).mean(1)  # (G, D, D)
        direction = torch.linalg.eigh(by_group).eigenvectors[..., -1]  # (G, D)
        mean = queries.rotated(queries.mean[:, None]).mean((1, 2))
        mean = mean.unflatten(0, (queries.kv_heads, -1)).mean(1)
        sign = torch.where((direction * mean).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        return {"direction": direction * sign}

    def score(self, pairs: HeldPairs) -> Tensor:
        return (pairs.relative_keys @ pairs.weights["direction"][..., None])[..., 0]
