"""Which pairs stay behind a window, and what is read from them: a loop over tokens, in float64.

It shares the definition of `infini.memory.eviction` and its three numbers, and no code.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from infini.memory import eviction
from memory.toy_window import B, G, H, V, turn


@dataclass
class Keeper:
    """Of one key-value head."""

    window: int
    sinks: int
    count: int  # K
    context: int | None = None
    limit: int | None = None  # the base's own window
    kept: list[int] = field(default_factory=list)  # tokens, from the text's start
    scores: dict[int, float] = field(default_factory=dict)  # of any token: 0 if not there
    paid: dict[int, float] = field(default_factory=dict)  # in the block begun
    favours: dict[int, float] = field(default_factory=dict)  # of any token that was seen

    def distances(self, t: int) -> dict[int, int]:
        """Of the tokens that token t sees: how far away they look."""
        edge = self.window + self.sinks - 1
        found = {j: min(t, edge) - j for j in range(min(self.sinks, t + 1))}
        begin = t - t % eviction.BLOCK
        for j in [*self.retained, *range(max(self.sinks, begin - self.window + 1), t + 1)]:
            found[j] = t - j
        return {j: back for j, back in found.items() if self.limit is None or back < self.limit}

    def look(self, t: int, weights: dict[int, float], favours: dict[int, float]) -> None:
        """Token t has seen these, each with the largest of its query heads' weights."""
        self.favours |= favours
        if t >= self.window + self.sinks:
            for j, weight in weights.items():
                self.paid[j] = max(self.paid.get(j, 0), weight)
        if (t + 1) % eviction.BLOCK == 0:
            self._choose(t + 1)

    def _choose(self, begin: int) -> None:
        """For the block that begins there."""
        for j in self.scores.keys() | self.paid.keys():
            self.scores[j] = eviction.FADING * self.scores.get(j, 0) + self.paid.get(j, 0)
        self.paid.clear()
        edge = begin - self.window + 1
        left = range(max(self.sinks, edge - eviction.BLOCK), edge)
        asked_for = [j for j in left if self.scores.get(j, 0) > 0]
        ranks = {j: self.scores[j] + self.lasting(j) for j in (*self.retained, *asked_for)}
        candidates = [j for j, rank in ranks.items() if rank > 0]
        last = begin + eviction.BLOCK - 1  # of the tokens that will see them
        for reach in (self.context, self.limit):
            candidates = [j for j in candidates if reach is None or last - j < reach]
        self.retained = sorted(candidates, key=lambda j: -ranks[j])[: self.count]

    def lasting(self, j: int) -> float:
        """What favour adds to a pair's rank."""
        return max(0.0, self.favours[j] - eviction.MARGIN)


def turn_back(keys: Tensor, distances: Tensor) -> Tensor:
    """(n, D), (n,)."""
    return turn(keys[None, None], -distances[None])[0, 0]


def favours(v: Tensor, weight: Tensor) -> Tensor:
    """Of pairs by their values, in logits, (...); v: (..., V), weight: (V,)."""
    return v @ weight * (v.shape[-1] / v.square().sum(-1)).sqrt()


def read_token(
    qkv: tuple[Tensor, Tensor, Tensor],
    t: int,
    keeper: Keeper,
    bias: Tensor,
    weight: Tensor,
    turn_back: Callable[[Tensor, Tensor], Tensor] = turn_back,
) -> Tensor:
    """What query heads on one key-value head read, (r, V), at token t; the keeper is told.

    qkv: (r, T, D), (T, D), (T, V) of the whole text. bias: (r,), for all kept pairs; weight: (V,),
    for each by its value.
    """
    q, k, v = qkv
    distances = keeper.distances(t)
    seen, back = torch.tensor(list(distances)), torch.tensor(list(distances.values()))
    scores = q[:, t] @ turn_back(k[seen], back).T / q.shape[2] ** 0.5
    are_kept = torch.tensor([j in keeper.retained for j in distances])
    most, own = scores.softmax(-1).amax(0).tolist(), favours(v[seen], weight)
    keeper.look(
        t,
        dict(zip(distances, most, strict=True)),
        dict(zip(distances, own.tolist(), strict=True)),
    )
    return (scores + (bias[:, None] + own) * are_kept).softmax(-1) @ v[seen]


def loop(
    qkv: tuple[Tensor, Tensor, Tensor],
    bias: Tensor,
    weight: Tensor,
    keeper: dict[str, int | None],
) -> tuple[Tensor, list[list[Keeper]]]:
    """(B, T, H, V), and what every sample's key-value heads know in the end.

    keeper: what a `Keeper` is made of. bias: (H,); weight: (G, V).
    """
    q, k, v = qkv
    keepers = [[Keeper(**keeper) for _ in range(G)] for _ in range(B)]
    q, bias = q.unflatten(1, (G, H // G)), bias.unflatten(0, (G, H // G))
    rows = [
        read_token((q[b, g], k[b, g], v[b, g]), t, keepers[b][g], bias[g], weight[g])
        for b in range(B)
        for g in range(G)
        for t in range(q.shape[3])
    ]
    return torch.stack(rows).view(B, G, -1, H // G, V).transpose(1, 2).flatten(2, 3), keepers
