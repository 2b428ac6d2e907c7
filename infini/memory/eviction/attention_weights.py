"""Attention weights of the new queries on the pairs that a layer holds, a block at a time.

Shapes: B batch, H query heads, G key-value heads, r = H / G, D key width, S sinks, N blocks of C
queries, K retained pairs, W window, P all pairs of the call.
"""

from typing import Protocol

import torch
from torch import Tensor

from infini.memory.eviction.block_layout import BlockLayout
from infini.memory.eviction.call_pairs import CallPairs
from infini.memory.eviction.policy import RetentionPolicy


class BlockWeights(Protocol):
    """Attention weights of the new queries, a block at a time, in order."""

    in_all_blocks: bool
    """True: `of_block` is called for every block; False: only for blocks with scored queries"""

    def of_block(self, block: int, indices: Tensor, valid: Tensor, queries: range) -> Tensor:
        """Return the weights on retained pairs and window.

        Args:
            block: Block, from 0.
            indices: Pairs retained during the block, (B, G, n), n up to K.
            valid: Where there is one, (B, G, n).
            queries: New queries, by their index in the block; it may be empty.

        Returns:
            The weights, (B, G, r, len(queries), n + W - 1 + C), float32.
        """


class AttentionWeights:
    """Attention weights of the new queries, computed a block at a time."""

    in_all_blocks = False

    def __init__(
        self, queries: tuple[Tensor, Tensor], pairs: CallPairs, layout: BlockLayout, K: int
    ):
        G = pairs.keys.shape[1]
        self.keys, self.pinned = pairs.rotated_keys.float(), pairs.pinned
        self.windows = layout.unfold_windows(self.keys[:, :, K:])
        q, sink_q = (
            layout.split_queries(x.float()).unflatten(1, (G, -1)).transpose(2, 3).flatten(3, 4)
            for x in queries
        )  # (B, G, N, r·C, D)
        self.q, self.heads = q, q.shape[3] // layout.block_size
        self.to_sinks = sink_q @ pairs.sink_keys.float().mT[:, :, None]  # (B, G, N, r·C, S)
        sink_mask, window_mask = (
            ~mask(q.device).repeat(1, self.heads, 1)
            for mask in (layout.sink_mask, layout.window_mask)
        )  # (N, r·C, S or W - 1 + C)
        self.to_sinks.masked_fill_(sink_mask, -torch.inf)
        self.window_mask = window_mask

    def of_block(self, block: int, indices: Tensor, valid: Tensor, queries: range) -> Tensor:
        """Return the weights of some queries; see `BlockWeights`."""
        q, to_sinks = self.q[:, :, block], self.to_sinks[:, :, block]
        index = indices[..., None].expand(-1, -1, -1, self.keys.shape[3])
        keys = self.keys.gather(2, index)
        if self.pinned is not None:
            keys = self.pinned.move_closer(keys, block, indices)
        to_retained = q @ keys.mT
        to_retained.masked_fill_(~valid[:, :, None], -torch.inf)
        to_window = q @ self.windows[:, :, block].mT
        to_window.masked_fill_(self.window_mask[block], -torch.inf)
        weights = torch.cat([to_sinks, to_retained, to_window], -1).softmax(-1)
        weights = weights[..., to_sinks.shape[3] :].unflatten(2, (self.heads, -1))
        return weights[..., queries.start : queries.stop, :]


def add_attention(policy: RetentionPolicy, received: Tensor, attention: Tensor) -> Tensor:
    """Add some queries' attention to what pairs received earlier in the block.

    received: (B, G, K + W - 1 + C); attention: (B, G, r, queries, K + W - 1 + C).
    """
    if policy.attention == "max":
        return received.maximum(attention.amax((2, 3)))
    for weights in attention.mean(2).unbind(2):  # in order, for the same bits in any chunks
        received = policy.query_decay * received + weights
    return received
