"""Reference of retained pairs and of the attention to them: a loop over tokens, in float64.

It shares the definition of `infini.memory.eviction` and its three numbers, and no code. Behind it,
`streamed` reads the same texts by our attention, in chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from infini.memory.eviction import RetainedState, block_layout
from infini.memory.eviction.decayed_attention import SCORE_DECAY
from infini.memory.eviction.selection import BIAS_THRESHOLD
from infini.memory.retained import AttentionSpec, RetainedPairs, WindowPairs, retained_attention
from infini.memory.window import ChunkInfo, WindowState
from memory.toy_window import B, D, G, H, V, softmax, turn

QKV = tuple[Tensor, Tensor, Tensor]
SCALE = D**-0.5


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
    head: int = 0  # key-value head
    weights: dict[str, Tensor] = field(default_factory=dict)  # the policy's tensors, of all heads
    heads: "list[ReferenceCache]" = field(default_factory=list, repr=False)  # of the same layer
    pairs: tuple[Tensor, Tensor] | None = None  # keys and values of the text, (T, D) and (T, V)

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
        """Record token t's attention weights, one per query head.

        At a block's end, the layer's heads evict when the last of them has seen the token.
        """
        self.bias |= bias
        block = block_layout.RETENTION_BLOCK
        if t >= self.window + self.sinks:
            self.add_attention(weights)
        if (t + 1) % block == 0 and t + 1 > self.window + self.sinks:
            heads = self.heads or [self]
            if self is heads[-1]:
                for head in heads:
                    head.update_scores()
                for head in heads:
                    head.select(t + 1)

    def add_attention(self, weights: dict[int, Tensor]) -> None:
        """Add a query's attention to that of the block: the maximum."""
        for j, weight in weights.items():
            self.block_attention[j] = max(self.block_attention.get(j, 0), float(weight.amax()))

    def update_scores(self) -> None:
        """Update the scores at a block's end."""
        for j in self.scores.keys() | self.block_attention.keys():
            score = SCORE_DECAY * self.scores.get(j, 0)
            self.scores[j] = score + self.block_attention.get(j, 0)

    def held(self, start: int) -> list[int]:
        """Return the tokens held at the end of a block, without sinks.

        start: position after the block.
        """
        return [*self.retained, *self.leaving(start), *range(start - self.window + 1, start)]

    def leaving(self, start: int) -> list[int]:
        """Return the tokens that have left the window in the block that ends before `start`."""
        edge = start - self.window + 1
        return list(range(max(self.sinks, edge - block_layout.RETENTION_BLOCK), edge))

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        """Return the scores of the candidates; those without one are not retained."""
        return {j: self.scores[j] for j in candidates if self.scores.get(j, 0) > 0}

    def select(self, start: int) -> None:
        """Select the retained tokens for the block that starts there."""
        ranks = self.ranks(start)
        self.block_attention.clear()
        best = sorted(ranks, key=lambda j: -ranks[j])[: self.num_retained]
        self.retained = sorted(best)

    def ranks(self, start: int) -> dict[int, float]:
        """Return the ranks of the candidates that the next block can reach."""
        scores = self.score([*self.retained, *self.leaving(start)], start)
        ranks = {j: score + self.rank_bias(j) for j, score in scores.items()}
        last = start + block_layout.RETENTION_BLOCK - 1  # query of the coming block
        for limit in (self.context, self.sliding_window):
            ranks = {j: rank for j, rank in ranks.items() if limit is None or last - j < limit}
        return ranks

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
    cache.pairs = k.detach(), v.detach()
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
    case: dict[str, Any],
    cache_class: type[ReferenceCache] = ReferenceCache,
) -> tuple[Tensor, list[list[ReferenceCache]]]:
    """Output, (B, T, H, V), and the cache of every sample's key-value heads after the text.

    case: arguments of the cache. bias: (H,); weight: (G, V).
    """
    q, k, v = qkv
    caches = [[cache_class(**case, head=g) for g in range(G)] for _ in range(B)]
    for heads in caches:
        for cache in heads:
            cache.heads = heads
    q, bias = q.unflatten(1, (G, H // G)), bias.unflatten(0, (G, H // G))
    rows = [
        read_token((q[b, g], k[b, g], v[b, g]), t, caches[b][g], bias[g], weight[g])
        for b in range(B)
        for t in range(q.shape[3])
        for g in range(G)
    ]
    return torch.stack(rows).view(B, -1, H, V), caches


def with_random_bias(
    num_retained: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> RetainedPairs:
    """Retained pairs as if trained: a bias of about a logit, so that it decides which stay."""
    torch.manual_seed(seed)
    retained = RetainedPairs(H, G, (D, V), num_retained)
    torch.nn.init.normal_(retained.bias, std=2)
    torch.nn.init.normal_(retained.weight, std=1.2 * V**-0.5)
    return retained.to(dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return softmax(q * SCALE, k, v, mask)


def step(
    qkv: QKV,
    state: WindowState,
    chunk: ChunkInfo,
    case: ReferenceCache,
    retained: RetainedPairs,
    **spec: Any,
) -> tuple[Tensor, WindowState]:
    """One call."""
    q, k, v = qkv
    after = chunk.next_state(state, k, v, state.matrix)
    joined = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
    given = {
        "attention": attention,
        "rotate": turn,
        "scale": SCALE,
        "context": case.context,
        "sliding_window": case.sliding_window,
    }
    pairs = WindowPairs(*joined, after.sink_keys, after.sink_values)
    assert state.retained is not None
    out, pairs_after = retained_attention(
        q, pairs, state.retained, chunk, AttentionSpec(**(given | spec)), retained
    )
    return out, after._replace(retained=pairs_after)


def empty(
    k: Tensor, v: Tensor, chunk: ChunkInfo, case: ReferenceCache, retained: RetainedPairs
) -> WindowState:
    """The state before the first token."""
    return WindowState.empty(k, v, chunk, False, case.num_retained, retained.policy)


def streamed(
    qkv: QKV, chunks: list[int], case: ReferenceCache, retained: RetainedPairs, **spec: Any
) -> tuple[Tensor, RetainedState]:
    """In chunks, the state passed on."""
    batch, past, out, state = len(qkv[0]), 0, [], None
    for q, k, v in zip(*(x.split(chunks, 2) for x in qkv), strict=True):
        T = q.shape[2]
        past_lengths = torch.full((batch,), past)
        chunk = ChunkInfo(past_lengths, torch.full((batch,), T), T, case.window, case.sinks)
        state = state or empty(k, v, chunk, case, retained)
        read, state = step((q, k, v), state, chunk, case, retained, **spec)
        out.append(read)
        past += T
    assert state is not None
    assert state.retained is not None
    return torch.cat(out, 1), state.retained
