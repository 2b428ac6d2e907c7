"""Pinned tokens: their pairs stay behind the window, whatever their rank.

In every head, the pair of a pinned token takes one of the K slots of retained pairs once it has
left the window. Sinks stay anyway and take none. The tokens are the same in all layers and heads,
so that a cache holds their positions once.

Other pairs are dropped where the base's context, or a layer's own sliding window, ends. A pinned
pair is met closer from there on, as StreamingLLM meets its sinks (arXiv 2309.17453): in the block
that begins at position b, the i-th pinned token of a sample, p_i, counted from 0, is met at

    max(p_i, min(f + i, b - W))

with f the first position within reach of the block's last query. Tokens in a row keep their
distances to each other. Where the reach is below W + C tokens, no pair behind the window is in
it, and none is retained, pinned or not.

Shapes: B batch, G key-value heads, D key width, K retained pairs, P pairs of a call, M pinned
tokens of the sample that has the most, W window, C tokens of a block.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from infini.memory.eviction.block_layout import BlockLayout, num_recent
from infini.memory.eviction.query_statistics import Rotate


def append_pinned(pinned: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    """Return the positions of pinned tokens after more tokens.

    Args:
        pinned: Positions in order, -1 in empty slots, which come first: (B, M) int64.
        new: Which of the next tokens are pinned, (B, T) bool.
        positions: Their positions, (B, T) int64.

    Returns:
        The positions of all, likewise.
    """
    joined = torch.cat([pinned, positions.where(new, -1)], 1).sort(1).values
    return joined[:, joined.shape[1] - int((joined >= 0).sum(1).max()) :].clone()


@dataclass(frozen=True)
class PinnedPairs:
    """Pinned tokens of a call whose samples have one layout."""

    tokens: Tensor
    """Positions in order, -1 in empty slots, which come first: (B, M) int64, M ≥ 1"""
    keys: Tensor
    """Keys of all pairs of the call, without positions: (B, G, P, D)"""
    state_positions: Tensor
    """Positions of the pairs retained before the call: (B, G, K)"""
    layout: BlockLayout
    """Blocks of the new tokens"""
    rotate: Rotate | None
    """Gives keys their positions; None: they have none, or have them"""

    @property
    def in_reach(self) -> bool:
        """Whether a block's last query reaches any pair behind the window."""
        reach, least = self.layout.max_distance, self.layout.window + self.layout.block_size
        return reach is None or reach >= least

    def contains(self, positions: Tensor) -> Tensor:
        """Return which positions, (B, G, n), are those of pinned tokens that are retained."""
        if not self.in_reach:
            return torch.zeros_like(positions, dtype=torch.bool)
        return self._find(positions)[1]

    def move_closer(self, keys: Tensor, block: int, indices: Tensor) -> Tensor:
        """Return the keys of a block's retained pairs at the positions where they are met.

        Args:
            keys: Keys at their own positions, (B, G, K, D).
            block: Block, from 0.
            indices: Indices of the pairs among the P, (B, G, K).
        """
        met_at = self._met_at(block)
        if self.rotate is None or bool((met_at == self.tokens).all()):
            return keys
        positions = self._positions.gather(2, indices)
        slot, is_pinned = self._find(positions)
        met_at = met_at.gather(1, slot.flatten(1)).view_as(positions)
        is_moved = is_pinned & (met_at != positions)
        own = self.keys.gather(2, indices[..., None].expand(-1, -1, -1, self.keys.shape[3]))
        moved = rotate_pairs(own, (met_at - self.layout.num_past) * is_moved, self.rotate)
        return torch.where(is_moved[..., None], moved.to(keys.dtype), keys)

    def _find(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slots of positions among `tokens`, and whether they are there: (B, G, n)."""
        flat = positions.flatten(1).contiguous()
        slot = torch.searchsorted(self.tokens, flat).clamp(max=self.tokens.shape[1] - 1)
        found = (self.tokens.gather(1, slot) == flat) & (flat >= 0)
        return slot.view_as(positions), found.view_as(positions)

    def _met_at(self, block: int) -> Tensor:
        """Return the positions at which the tokens are met in a block: (B, M)."""
        first = self.layout.first_reachable(block)
        if first is None:
            return self.tokens
        order = (self.tokens >= 0).cumsum(1) - 1  # i of p_i
        last = self.layout.block_start(block) - self.layout.window
        closer = self.tokens.maximum((first + order).clamp(max=last))
        return closer.where(self.tokens >= 0, -1)

    @cached_property
    def _positions(self) -> Tensor:
        """Positions of all pairs of the call, (B, G, P)."""
        layout = self.layout
        first = layout.num_past - num_recent(layout.window)
        recent = torch.arange(first, layout.end, device=self.tokens.device)
        recent = recent.expand(*self.state_positions.shape[:2], -1)
        return torch.cat([self.state_positions, recent], 2)


def rotate_pairs(keys: Tensor, positions: Tensor, rotate: Rotate) -> Tensor:
    """Rotate keys of heads that differ in positions: (B, G, K, D) by (B, G, K)."""
    rotated = rotate(keys.flatten(0, 1)[:, None], positions.flatten(0, 1))  # (B·G, 1, K, D)
    return rotated.view_as(keys)
