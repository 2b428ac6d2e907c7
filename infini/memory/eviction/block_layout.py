"""Blocks of tokens that read the same retained pairs: index arithmetic and masks.

A text is cut into blocks of C = RETENTION_BLOCK tokens, counted from its start. The tokens of the
block that begins at b attend to the S sinks, the K retained pairs, and the tokens b - W < j ≤ t.
A layer holds R = W + C - 2 recent tokens, so that a block can be read in several calls.

Shapes: B batch, H query heads, G key-value heads, T new tokens, N blocks, C queries of a block,
W window, S sinks, K retained pairs, R recent tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.choices import RETENTION_BLOCK


def num_recent(window: int) -> int:
    """Return R, the number of recent tokens that a layer with retained pairs holds."""
    return window + RETENTION_BLOCK - 2


@dataclass(frozen=True)
class BlockLayout:
    """Layout of T new tokens after `num_past` others, in blocks; the same for all samples."""

    num_past: int  # tokens read before
    num_new: int  # T
    window: int  # W, tokens
    sinks: int  # S, tokens
    max_distance: int | None  # tokens from a retained pair to a query; None: any
    sliding_window: int | None = None  # the base's own window, in tokens, where it has one

    @property
    def block_size(self) -> int:
        """Tokens of a block, C."""
        return RETENTION_BLOCK

    @property
    def block_offset(self) -> int:
        """Number of tokens of the first block that were read before."""
        return self.num_past % self.block_size

    @property
    def end(self) -> int:
        """Position after the last new token."""
        return self.num_past + self.num_new

    @property
    def num_blocks(self) -> int:
        """Number of blocks, N."""
        return -(-(self.block_offset + self.num_new) // self.block_size)

    @property
    def window_width(self) -> int:
        """Number of tokens from the start of a block's window to the block's end, W - 1 + C."""
        return self.window - 1 + self.block_size

    def block_start(self, block: int) -> int:
        """Return the position of a block's first token."""
        return self.num_past - self.block_offset + block * self.block_size

    def first_reachable(self, block: int) -> int | None:
        """Return the first position within `max_distance` of a block's last query; None: any."""
        if self.max_distance is None:
            return None
        return self.block_start(block) + self.block_size - self.max_distance

    def is_block_end(self, block: int) -> bool:
        """Return whether the block ends in this call, behind the first W + S tokens.

        A text of up to W + S tokens may have been read by the base itself, without scores: nothing
        is evicted.
        """
        return self.window + self.sinks < self.block_start(block + 1) <= self.end

    def fills_window(self, block: int) -> bool:
        """Return whether the call completes the block at the text's first W + S tokens.

        Token S leaves the window then, without a score; it is retained only if it is pinned.
        """
        return self.window + self.sinks == self.block_start(block + 1) <= self.end

    def scored_queries(self, block: int, last_queries: int | None = None) -> range:
        """Return the new queries of a block whose attention is scored, by their index in it.

        Scoring begins at token W + S, where the window begins to move.

        Args:
            block: Block, from 0.
            last_queries: Number of queries at the block's end that are scored; None: all.
        """
        start = max(self.num_past, self.window + self.sinks) - self.block_start(block)
        if last_queries is not None:
            start = max(start, self.block_size - last_queries)
        return range(max(0, start), min(self.end - self.block_start(block), self.block_size))

    def split_queries(self, x: Tensor) -> Tensor:
        """Split new tokens into blocks: (B, H, T, ·) → (B, H, N, C, ·), zeros in empty slots."""
        missing = self.num_blocks * self.block_size - self.block_offset - self.num_new
        x = F.pad(x, (0, 0, self.block_offset, missing))
        return x.unflatten(2, (self.num_blocks, self.block_size))

    def unfold_windows(self, x: Tensor) -> Tensor:
        """Unfold recent and new tokens: (B, G, R + T, ·) → (B, G, N, W - 1 + C, ·), a view."""
        start = self.block_size - 1 - self.block_offset
        size = (self.num_blocks - 1) * self.block_size + self.window_width
        x = F.pad(x, (0, 0, 0, max(0, start + size - x.shape[2])))
        return x[:, :, start : start + size].unfold(2, self.window_width, self.block_size).mT

    def to_blocks(self, x: Tensor, num_retained: int) -> Tensor:
        """Move from the state's pairs to the first block's: (…, K + R) → (…, K + W - 1 + C)."""
        recent = x[..., num_retained + self.block_size - 1 - self.block_offset :]
        recent = F.pad(recent, (0, self.block_size - self.block_offset))
        return torch.cat([x[..., :num_retained], recent], -1)

    def from_blocks(self, x: Tensor, num_retained: int) -> Tensor:
        """Inverse of `to_blocks` for the block to continue with: (…, K + W - 1 + C) → (…, K + R).

        Tokens that have left that block's window get zeros.
        """
        offset = self.end % self.block_size
        recent = x[..., num_retained : num_retained + self.window - 1 + offset]
        recent = F.pad(recent, (self.block_size - 1 - offset, 0))
        return torch.cat([x[..., :num_retained], recent], -1)

    def window_mask(self, device: torch.device, block: int | None = None) -> Tensor:
        """Return which tokens of its window a query attends to, True where it does.

        Args:
            device: Device of the mask.
            block: One block; None: all.

        Returns:
            The mask, (C, W - 1 + C) or (N, C, W - 1 + C).
        """
        C = self.block_size
        blocks = torch.arange(self.num_blocks, device=device)
        starts = self.block_start(0) + C * (blocks if block is None else blocks[block])
        key = starts[..., None] - self.window + 1 + torch.arange(self.window_width, device=device)
        query = starts[..., None] + torch.arange(C, device=device)
        distance = query[..., None] - key[..., None, :]
        mask = (distance >= 0) & (key[..., None, :] >= self.sinks)
        return mask if self.sliding_window is None else mask & (distance < self.sliding_window)

    def sink_mask(self, device: torch.device) -> Tensor:
        """Return which sinks a query attends to: (N, C, S), True where it does."""
        queries = torch.arange(self.num_blocks * self.block_size, device=device)
        query = self.block_start(0) + queries.view(-1, self.block_size, 1)
        sink = torch.arange(self.sinks, device=device)
        mask = sink <= query
        if self.sliding_window is None:
            return mask
        edge = self.window + self.sinks - 1  # later queries: same distance as `edge`
        return mask & (query.clamp(max=edge) - sink < self.sliding_window)
