"""Pinned tokens in the reference of retained pairs, and texts with them read in chunks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infini.memory.eviction import RetainedState, block_layout
from infini.memory.retained import RetainedPairs
from infini.memory.window import ChunkInfo
from memory.toy_retained import QKV, ReferenceCache, empty, step


@dataclass
class PinningCache(ReferenceCache):
    """Reference with pinned tokens, the same in every sample."""

    pinned: tuple[int, ...] = ()

    def observe(self, t: int, weights: dict[int, Tensor], bias: dict[int, float]) -> None:
        super().observe(t, weights, bias)
        exact = self.window + self.sinks
        if t + 1 == exact and exact % block_layout.RETENTION_BLOCK == 0:
            self.retained = self.staying([self.sinks])

    def reach(self) -> int:
        """Distance that no query of a block may have to a retained token."""
        return min(x for x in (self.context, self.sliding_window, 10**9) if x is not None)

    def staying(self, candidates: list[int]) -> list[int]:
        """Return those of the candidates that are pinned, if any pair can be retained."""
        can_retain = self.reach() >= self.window + block_layout.RETENTION_BLOCK
        return [j for j in candidates if can_retain and j in self.pinned]

    def distances(self, t: int) -> dict[int, int]:
        distances = super().distances(t)
        start = t - t % block_layout.RETENTION_BLOCK
        first = start + block_layout.RETENTION_BLOCK - self.reach()
        for i, j in enumerate(j for j in self.pinned if j >= self.sinks):
            if j in self.retained:
                distances[j] = t - max(j, min(first + i, start - self.window))
        return distances

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        stay = self.staying(candidates)
        return {j: x for j, x in super().score(candidates, start).items() if j not in stay}

    def select(self, start: int) -> None:
        stay, total = self.staying([*self.retained, *self.leaving(start)]), self.num_retained
        self.num_retained -= len(stay)
        super().select(start)
        self.num_retained, self.retained = total, sorted([*self.retained, *stay])


def streamed_with_pins(
    qkv: QKV, chunks: list[int], case: PinningCache, retained: RetainedPairs, **spec: Any
) -> tuple[Tensor, RetainedState]:
    """Read a text in chunks, the state passed on; `streamed` with pinned tokens."""
    batch, past, out, state = len(qkv[0]), 0, [], None
    for q, k, v in zip(*(x.split(chunks, 2) for x in qkv), strict=True):
        T = q.shape[2]
        pins = [j for j in case.pinned if case.sinks <= j < past + T]
        pinned = torch.tensor([[-1] * (case.sinks + past % 3) + pins] * batch) if pins else None
        lengths = torch.full((batch,), past), torch.full((batch,), T)
        chunk = ChunkInfo(*lengths, T, case.window, case.sinks, pinned)
        state = state or empty(k, v, chunk, case, retained)
        read, state = step((q, k, v), state, chunk, case, retained, **spec)
        out.append(read)
        past += T
    assert state is not None
    assert state.retained is not None
    return torch.cat(out, 1), state.retained
