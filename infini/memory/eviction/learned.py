"""Retention policies `learned` and `learned_no_attention`: linear scores, fitted to texts.

    learned:               score = w · [k, v, 1, log age, log s, log s · log age]
    learned_no_attention:  score = w · [k, v, 1, log age, k at its distance]

with k without position, s the score of `a2sf` and age the pair's distance from the end of the
block. Of each key-value head, w is the ridge regression to the square root of what the oracle says
of other texts (`FutureRegression`), the squared attention that the next blocks pay to the pair. No
gradient, and no state beside s. The heads of a layer share their pairs, as with `adakv`.
`learned_no_attention` needs no attention weights and has no state.

Learned scores of whole prompts are prior art: Locret (arXiv 2410.01805), KVzap (arXiv 2601.07891).
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from infini.memory.eviction.a2sf import A2SF, FORGETTING_FACTOR
from infini.memory.eviction.oracle import Oracle
from infini.memory.eviction.policy import (
    HeldPairs,
    LayerSize,
    RetentionPolicy,
    register_policy,
)

SMALLEST_SCORE = 1e-4  # attention; keeps logarithms finite
RIDGE = 1e-3  # share of a feature's second moment
SMALLEST_MOMENT = 1e-6  # of a feature that is always zero


@register_policy("learned")
class Learned(RetentionPolicy):
    """Retention policy that ranks pairs by a linear score, fitted to the attention to come.

    Args:
        use_attention: Whether s is among the features; False: no attention weights, no state.
        min_share: Share of K pairs that every head keeps; None: every head keeps K.
    """

    query_decay = FORGETTING_FACTOR

    def __init__(self, use_attention: bool = True, min_share: float | None = 0.2):
        self.use_attention = use_attention
        self.min_share = min_share
        if use_attention:
            self.attention, self.state, self.state_covers_window = "sum", ("score",), True

    def weight_shapes(self, size: LayerSize) -> dict[str, tuple[int, ...]]:
        width = size.key_width + size.value_width + 2
        width += 2 if self.use_attention else size.key_width
        return {"weights": (size.kv_heads, width)}

    def changing_features(self, pairs: HeldPairs) -> Tensor:
        """Return the features that change from block to block, (B, G, P, ·); s is a state."""
        log_age = (pairs.block_end - pairs.positions).clamp(min=1).float().log()
        scalars = [torch.ones_like(log_age), log_age]
        if not self.use_attention:
            return torch.cat([torch.stack(scalars, -1), pairs.relative_keys], -1)
        log_score = pairs.state["score"].clamp(min=SMALLEST_SCORE).log()
        return torch.stack([*scalars, log_score, log_score * log_age], -1)

    def features(self, pairs: HeldPairs) -> Tensor:
        """Return all features, (B, G, P, F)."""
        return torch.cat([pairs.keys, pairs.values, self.changing_features(pairs)], -1)

    def pair_score(self, keys: Tensor, values: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        D, V = keys.shape[3], values.shape[3]
        w = weights["weights"][..., None]  # (G, F, 1)
        return (keys @ w[:, :D] + values @ w[:, D : D + V])[..., 0]

    def score(self, pairs: HeldPairs) -> Tensor:
        if self.use_attention:
            A2SF().score(pairs)  # updates the state
        changing = self.changing_features(pairs)
        w = pairs.weights["weights"][:, -changing.shape[3] :, None]  # (G, ·, 1)
        return pairs.pair_scores + (changing @ w)[..., 0]


register_policy("learned_no_attention", partial(Learned, use_attention=False))


class FutureRegression(A2SF):
    """Reads texts like `a2sf`, and fits a learned policy to all pairs that it considers.

    Args:
        policy: What is fitted.
    """

    def __init__(self, policy: Learned):
        super().__init__()
        self.policy = policy
        self.oracle: Oracle | None = None
        """Knows the text that is read next"""
        self.sums: dict[int, Tensor] = {}
        """Sums of x xᵀ over pairs by layer, x the features and the target: (G, F + 1, F + 1)"""

    def score(self, pairs: HeldPairs) -> Tensor:
        assert self.oracle is not None
        score = super().score(pairs)
        target = self.oracle.score(pairs).sqrt()
        rows = torch.cat([self.policy.features(pairs), target[..., None]], -1)
        rows = rows[:, :, : pairs.num_candidates]
        rows = rows.where(pairs.valid[:, :, : pairs.num_candidates, None], 0)
        sums = (rows.mT @ rows).sum(0).double()  # (G, F + 1, F + 1)
        self.sums[pairs.layer_index] = self.sums.get(pairs.layer_index, 0) + sums
        return score

    def weights(self, layer: int) -> dict[str, Tensor]:
        """Return the tensors of the fitted policy in a layer."""
        moments, product = self.sums[layer][:, :-1, :-1], self.sums[layer][:, :-1, -1:]
        ridge = torch.diag_embed(RIDGE * moments.diagonal(dim1=1, dim2=2) + SMALLEST_MOMENT)
        return {"weights": torch.linalg.solve(moments + ridge, product)[..., 0].float()}
