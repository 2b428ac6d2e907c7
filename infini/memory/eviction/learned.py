"""Retention policies `learned` and `learned_no_attention`: linear scores, fitted to texts.

    learned:               score = w · [k, v, 1, log age, log s, log s · log age]
    learned_no_attention:  score = w · [k, v, 1, log age, k at its distance]

with k without position, s the score of `a2sf` and age the pair's distance from the end of the
block. Each key-value head has its own w: the ridge regression of √(oracle score) on these features,
over texts (`future_regression`). There is no gradient, and no state beside s;
`learned_no_attention` has none and needs no attention weights. The heads of a layer share their
pairs, as with `adakv`.

Learned scores of whole prompts are prior art: Locret (arXiv 2410.01805), KVzap (arXiv 2601.07891).
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from infini.memory.eviction.a2sf import A2SF, FORGETTING_FACTOR
from infini.memory.eviction.policy import (
    HeldPairs,
    LayerSize,
    RetentionPolicy,
    register_policy,
)

SMALLEST_SCORE = 1e-4  # attention; keeps logarithms finite


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
        G, D = size.kv_heads, size.key_width
        shapes: dict[str, tuple[int, ...]] = {"key": (G, D), "value": (G, size.value_width)}
        if self.use_attention:
            return shapes | {"scalar": (G, 4)}
        return shapes | {"scalar": (G, 2), "relative_key": (G, D)}

    def scalars(self, pairs: HeldPairs) -> Tensor:
        """Return 1, log age; with attention also log s, log s · log age: (B, G, P, 2 or 4)."""
        log_age = (pairs.block_end - pairs.positions).clamp(min=1).float().log()
        scalars = [torch.ones_like(log_age), log_age]
        if self.use_attention:
            log_score = pairs.state["score"].clamp(min=SMALLEST_SCORE).log()
            scalars += [log_score, log_score * log_age]
        return torch.stack(scalars, -1)

    def features(self, pairs: HeldPairs) -> dict[str, Tensor]:
        """Return the features by name of their fitted tensor, (B, G, P, ·) each."""
        features = {"key": pairs.keys, "value": pairs.values, "scalar": self.scalars(pairs)}
        if self.use_attention:
            return features
        return features | {"relative_key": pairs.relative_keys}

    def pair_score(self, keys: Tensor, values: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        score = keys @ weights["key"][..., None] + values @ weights["value"][..., None]
        return score[..., 0]

    def score(self, pairs: HeldPairs) -> Tensor:
        if self.use_attention:
            A2SF().score(pairs)  # updates the state
        changing = (self.scalars(pairs) @ pairs.weights["scalar"][..., None])[..., 0]
        if not self.use_attention:
            keys = pairs.relative_keys @ pairs.weights["relative_key"][..., None]
            changing = changing + keys[..., 0]
        return pairs.pair_scores + changing


register_policy("learned_no_attention", partial(Learned, use_attention=False))
