"""Retention policy `cascading`: sub-caches that each take every second pair of the one before.

The retained pairs are four sub-caches of K / 4. What leaves the window enters the first; what a
full sub-cache drops, its oldest pair, is offered to the next. Until K pairs have entered, a
sub-cache takes all that it is offered. Then it takes every second; of another offered pair and its
own latest, the one with the higher average attention stays. So attention reaches back far, ever
more sparsely.

Cascading KV Cache (arXiv 2406.17808, section 3.2), with an exponential moving average of the
attention. Pinned tokens take slots of all sub-caches; with them the paper has no counterpart.
"""

from collections import deque

import torch
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy

SUB_CACHES = 4
ATTENTION_DECAY = 0.99  # of the moving average, per token


@register_policy("cascading")
class Cascading(RetentionPolicy):
    """Retention policy that holds pairs in sub-caches of falling density.

    Args:
        sub_caches: Number of sub-caches.
    """

    attention = "sum"
    query_decay = ATTENTION_DECAY
    state = ("average",)
    state_covers_window = True

    def __init__(self, sub_caches: int = SUB_CACHES):
        self.sub_caches = sub_caches

    def score(self, pairs: HeldPairs) -> Tensor:
        assert pairs.block_attention is not None
        decay = self.query_decay**pairs.block_size
        average = decay * pairs.state["average"] + pairs.block_attention
        pairs.state["average"] = average
        kept = self._run(pairs, average)  # (B, G, ≤ K), indices
        score = torch.full_like(average, -torch.inf)
        return score.scatter(2, kept, 1.0)

    def _run(self, pairs: HeldPairs, average: Tensor) -> Tensor:
        """Return the pairs that the sub-caches hold after the block, by index among the P."""
        K, C = pairs.num_retained, pairs.block_size
        sizes = [
            K * (i + 1) // self.sub_caches - K * i // self.sub_caches
            for i in range(self.sub_caches)
        ]
        num_new, num_before = self._num_entered(pairs)
        slots = torch.arange(K + C, device=average.device).expand(*average.shape[:2], -1)
        caches: list[deque[Tensor]] = []
        entered, end = num_before, K
        for size in sizes:  # the latest pairs are in the first sub-cache
            start = end - min(entered, size)
            caches.append(deque(slots[:, :, start:end].unbind(2)))
            entered, end = entered - (end - start), start
        for number, pair in enumerate(slots[:, :, K + C - num_new :].unbind(2), num_before + 1):
            _insert(pair, number, caches, sizes, average)
        held = [pair for cache in caches for pair in cache]
        return torch.stack(held, 2) if held else slots[:, :, :0]

    def _num_entered(self, pairs: HeldPairs) -> tuple[int, int]:
        """Return how many pairs have left the window in this block, and before it."""
        C, W = pairs.block_size, pairs.window
        sinks = pairs.scoring_start - W
        first_end = pairs.scoring_start // C * C + C  # of the first block after which pairs leave
        first = max(sinks, first_end - W - C + 1)
        num_entered = pairs.block_end - W - first + 1
        num_new = min(C, num_entered)
        return num_new, num_entered - num_new


def _insert(
    pair: Tensor, number: int, caches: list[deque[Tensor]], sizes: list[int], average: Tensor
) -> None:
    """Insert a pair, (B, G), into the first sub-cache; in place.

    number: how many pairs have entered, this one included.
    """
    for level, (cache, size) in enumerate(zip(caches, sizes, strict=True)):
        if number > sum(sizes) and number % 2**level:  # not taken
            if cache:
                latest = cache.pop()
                is_higher = _at(average, pair) > _at(average, latest)
                cache.append(torch.where(is_higher, pair, latest))
            return
        cache.append(pair)
        if len(cache) <= size:
            return
        pair = cache.popleft()


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Return x at one index a head: (B, G, P), (B, G) → (B, G)."""
    return x.gather(2, index[..., None])[..., 0]
