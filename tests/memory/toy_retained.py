"""Reference of retained pairs and of the attention to them: a loop over tokens, in float64.

It shares the definition of `infini.memory.eviction` and its three numbers, and no code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from infini.memory.eviction import block_layout
from infini.memory.eviction.decayed_attention import SCORE_DECAY
from infini.memory.eviction.selection import BIAS_THRESHOLD
from memory.toy_window import B, G, H, V, turn


@dataclass
class ReferenceCache:
    """Tokens that one key-value head holds, by position, under the policy `decayed_attention`."""

    window: int
    sinks: int
    num_retained: int  # K
    context: int | None = None
    sliding_window: int | None = None  # the base's own window
    retained: list[int] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)  # 0 for missing tokens
    block_attention: dict[int, float] = field(default_factory=dict)
    bias: dict[int, float] = field(default_factory=dict)  # of every token seen

    def distances(self, t: int) -> dict[int, int]:
        """Distances at which token t sees the tokens that it sees."""
        edge = self.window + self.sinks - 1
        distances = {j: min(t, edge) - j for j in range(min(self.sinks, t + 1))}
        start = t - t % block_layout.RETENTION_BLOCK
        for j in [*self.retained, *range(max(self.sinks, start - self.window + 1), t + 1)]:
            distances[j] = t - j
        limit = self.sliding_window
        return {
            j: distance for j, distance in distances.items() if limit is None or distance < limit
        }

    def observe(self, t: int, weights: dict[int, Tensor], bias: dict[int, float]) -> None:
        """Record token t's attention weights, one per query head, and evict at a block's end."""
        self.bias |= bias
        block = block_layout.RETENTION_BLOCK
        if t >= self.window + self.sinks:
            self.add_attention(weights)
        if (t + 1) % block == 0 and t + 1 > self.window + self.sinks:
            self._select(t + 1)

    def add_attention(self, weights: dict[int, Tensor]) -> None:
        """Add a query's attention to that of the block: the maximum."""
        for j, weight in weights.items():
            self.block_attention[j] = max(self.block_attention.get(j, 0), float(weight.amax()))

    def update_scores(self) -> None:
        """Update the scores at a block's end."""
        for j in self.scores.keys() | self.block_attention.keys():
            score = SCORE_DECAY * self.scores.get(j, 0)
            self.scores[j] = score + self.block_attention.get(j, 0)

    def _select(self, start: int) -> None:
        """Select the retained tokens for the block that starts there."""
        self.update_scores()
        self.block_attention.clear()
        edge = start - self.window + 1
        evicted = range(max(self.sinks, edge - block_layout.RETENTION_BLOCK), edge)
        evicted = [j for j in evicted if self.scores.get(j, 0) > 0]
        ranks = {j: self.scores[j] + self.rank_bias(j) for j in (*self.retained, *evicted)}
        candidates = [j for j, rank in ranks.items() if rank > 0]
        last = start + block_layout.RETENTION_BLOCK - 1  # query of the coming block
        for limit in (self.context, self.sliding_window):
            candidates = [j for j in candidates if limit is None or last - j < limit]
        best = sorted(candidates, key=lambda j: -ranks[j])[: self.num_retained]
        self.retained = sorted(best)

    def rank_bias(self, j: int) -> float:
        """Return what the bias adds to a token's rank."""
        return max(0.0, self.bias[j] - BIAS_THRESHOLD)


def turn_back(keys: Tensor, distances: Tensor) -> Tensor:
    """Rotate keys, (n, D), by minus the distances, (n,)."""
    return turn(keys[None, None], -distances[None])[0, 0]


def pair_bias(v: Tensor, weight: Tensor) -> Tensor:
    """Bias of pairs by their values, in logits, (...); v: (..., V), weight: (V,)."""
    return v @ weight * (v.shape[-1] / v.square().sum(-1)).sqrt()


def read_token(
    qkv: tuple[Tensor, Tensor, Tensor],
    t: int,
    cache: ReferenceCache,
    bias: Tensor,
    weight: Tensor,
    turn_back: Callable[[Tensor, Tensor], Tensor] = turn_back,
) -> Tensor:
    """Attention output of the query heads of one key-value head, (r, V), at token t.

    qkv: (r, T, D), (T, D), (T, V) of the whole text. bias: (r,), for all retained pairs; weight:
    (V,), for each by its value. The cache observes the token.
    """
    q, k, v = qkv
    distances = cache.distances(t)
    seen, distance = torch.tensor(list(distances)), torch.tensor(list(distances.values()))
    scores = q[:, t] @ turn_back(k[seen], distance).T / q.shape[2] ** 0.5
    is_retained = torch.tensor([j in cache.retained for j in distances])
    weights, own_bias = scores.softmax(-1).detach().unbind(1), pair_bias(v[seen], weight)
    cache.observe(
        t,
        dict(zip(distances, weights, strict=True)),
        dict(zip(distances, own_bias.tolist(), strict=True)),
    )
    return (scores + (bias[:, None] + own_bias) * is_retained).softmax(-1) @ v[seen]


def loop(
    qkv: tuple[Tensor, Tensor, Tensor],
    bias: Tensor,
    weight: Tensor,
    case: dict[str, int | None],
    cache_class: type[ReferenceCache] = ReferenceCache,
) -> tuple[Tensor, list[list[ReferenceCache]]]:
    """Output, (B, T, H, V), and the cache of every sample's key-value heads after the text.

    case: arguments of the cache. bias: (H,); weight: (G, V).
    """
    q, k, v = qkv
    caches = [[cache_class(**case) for _ in range(G)] for _ in range(B)]
    q, bias = q.unflatten(1, (G, H // G)), bias.unflatten(0, (G, H // G))
    rows = [
        read_token((q[b, g], k[b, g], v[b, g]), t, caches[b][g], bias[g], weight[g])
        for b in range(B)
        for g in range(G)
        for t in range(q.shape[3])
    ]
    return torch.stack(rows).view(B, G, -1, H // G, V).transpose(1, 2).flatten(2, 3), caches
