"""Retention policy `expected_attention`: the attention that the next queries are expected to pay.

Queries without positions are taken for Gaussian, with the mean μ and the covariance Σ of a layer's
query head on the texts of `infini.fit_policy`. With the mean rotation R̄ of the next positions,

    score = (softmax over the pairs of (R̄μ · k + ½ kᵀ R̄ΣR̄ᵀ k) + ε) · ‖v‖,

the softmax averaged over the group's query heads, the scale of the attention in μ and Σ.

Expected Attention (arXiv 2510.00636, equations 5 to 9). No attention weights, no state.
"""

import torch
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, LayerSize, RetentionPolicy, register_policy
from infini.memory.eviction.query_statistics import QueryStatistics


@register_policy("expected_attention")
class ExpectedAttention(RetentionPolicy):
    """Retention policy that ranks pairs by the attention that future queries will pay.

    Args:
        epsilon: ε, added to every pair's expected attention.
    """

    def __init__(self, epsilon: float = 0.01):
        self.epsilon = epsilon

    def weight_shapes(self, size: LayerSize) -> dict[str, tuple[int, ...]]:
        heads, width = size.heads, size.key_width
        return {"mean": (heads, width), "covariance": (heads, width, width)}

    def fit(self, queries: QueryStatistics) -> dict[str, Tensor]:
        """Return R̄μ and R̄ΣR̄ᵀ."""
        mean, width = queries.mean, queries.mean.shape[1]
        covariance = queries.second_moment - mean[:, :, None] * mean[:, None]
        rows = torch.eye(width).expand(len(mean), -1, -1).to(mean)  # (H, D, D)
        # row i is R̄ applied to the unit vector i
        rotation = queries.rotated(rows).mean(2)
        return {
            "mean": (mean[:, None] @ rotation)[:, 0],
            "covariance": rotation.mT @ covariance @ rotation,
        }

    def score(self, pairs: HeldPairs) -> Tensor:
        keys, G = pairs.relative_keys[:, :, None], pairs.positions.shape[1]  # (B, G, 1, P, D)
        mean, covariance = (
            pairs.weights[name].unflatten(0, (G, -1)) for name in ("mean", "covariance")
        )  # (G, r, …)
        logits = (keys @ mean[..., None])[..., 0] + ((keys @ covariance) * keys).sum(-1) / 2
        hidden = ~pairs.valid[:, :, None]
        expected = logits.masked_fill(hidden, -torch.inf).softmax(-1).mean(2)  # (B, G, P)
        return (expected + self.epsilon) * pairs.values.norm(dim=-1)
