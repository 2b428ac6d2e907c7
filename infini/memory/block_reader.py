"""Attention to sinks, retained pairs and window without gradients, a block at a time.

The policy needs the attention weights p of a block before the next block's pairs are known: the
softmax of q·k over all that a query attends to. The output is read with the same weights. With the
learned bias b of a retained pair, of its query head and its own,

    out = (Σ p v + Σ p exp(b) v) / (Σ p + Σ p exp(b)),

the first sums over sinks and window, the others over retained pairs. `retained` computes the same
with gradients, for any attention function of a base.

Shapes: B batch, H query heads, G key-value heads, r = H / G, D key width, V value width, S sinks,
C tokens of a block, n new ones among them, K retained pairs, T new tokens, P pairs of the call.
"""

import torch
from torch import Tensor

from infini.memory.buffers import memory_columns
from infini.memory.eviction import BlockLayout, CallPairs

MAX_BIAS = 60.0  # logits: exp(b) and its products with p stay within float32


class BlockReader:
    """Attends block by block, in order; `out` is complete after the last.

    Args:
        q: Scaled queries with positions, (B, H, T, D).
        pairs: All pairs of the call.
        sinks: Scores of the sinks, masked, (B, H, T, S), and their values, (B, G, S, V).
        biases: Learned bias of the query heads, (H,), and of all pairs, (B, G, P); at most
            MAX_BIAS.
        layout: Blocks of the new tokens.
        num_retained: K.
    """

    in_all_blocks = True

    def __init__(
        self,
        q: Tensor,
        pairs: CallPairs,
        sinks: tuple[Tensor, Tensor],
        biases: tuple[Tensor, Tensor],
        layout: BlockLayout,
        num_retained: int,
    ):
        keys, values = pairs.rotated_keys, pairs.values
        (sink_scores, sink_values), self.pinned = sinks, pairs.pinned
        (B, G, _, self.key_width), self.value_width = keys.shape, values.shape[3]
        self.layout, self.num_retained = layout, num_retained
        self.q, self.sink_scores = (x.unflatten(1, (G, -1)) for x in (q, sink_scores))
        columns = memory_columns(self.value_width)
        self.pairs = keys.new_zeros(*keys.shape[:3], self.key_width + columns)  # [k | v | 1 | 0]
        self.pairs[..., : self.key_width] = keys
        _fill(self.pairs[..., self.key_width :], values)
        self.sink_values = keys.new_zeros(*sink_values.shape[:3], columns)
        _fill(self.sink_values, sink_values)
        self.sink_values = self.sink_values.flatten(0, 1)
        self.head_factors = biases[0].to(q.dtype).exp().view(G, -1, 1, 1)
        self.pair_factors = biases[1].to(q.dtype).exp()
        C = layout.block_size
        self.later = torch.ones(C, C, dtype=torch.bool, device=q.device).triu(1)
        self.out = q.new_empty(B, layout.num_new, q.shape[1], self.value_width)
        """The output, (B, T, H, V)"""

    def of_block(self, block: int, indices: Tensor, valid: Tensor, queries: range) -> Tensor:
        """Attend in a block, and return the weights on retained pairs and window.

        Args:
            block: Block, from 0.
            indices: Pairs retained during the block, (B, G, n), n up to K.
            valid: Where there is one, (B, G, n).
            queries: New queries whose weights are returned, by their index in the block.

        Returns:
            The weights, (B, G, r, len(queries), n + W - 1 + C), float32.
        """
        layout, (B, G, K), D = self.layout, indices.shape, self.key_width
        first = max(layout.block_start(block) - layout.num_past, 0)  # new token
        end = min(layout.block_start(block + 1) - layout.num_past, layout.num_new)
        start = self.num_retained + layout.block_size - 1 - layout.block_offset
        start += block * layout.block_size
        window = self.pairs[:, :, start : start + layout.window_width].flatten(0, 1)
        retained = self._retained(block, indices)
        S, rows = self.sink_scores.shape[4], self.q.shape[2] * (end - first)  # r·n
        q = self.q[:, :, :, first:end].reshape(B * G, rows, D)
        scores = torch.cat(
            [
                self.sink_scores[:, :, :, first:end].reshape(B * G, rows, S),
                q @ retained[..., :D].mT,
                q @ window[..., :D].mT,
            ],
            2,
        )
        by_query = scores.view(B, G, -1, end - first, scores.shape[2])
        if not valid.all():
            by_query[..., S : S + K].masked_fill_(~valid[:, :, None, None], -torch.inf)
        self._mask_window(by_query[..., S + K :], block)
        weights = scores.softmax(-1)
        read = weights[:, :, S + K :] @ window[..., D:]
        read.baddbmm_(weights[:, :, :S], self.sink_values)
        read = read.view(*by_query.shape[:4], -1)
        read.addcmul_(
            (weights[:, :, S : S + K] @ retained[..., D:]).view_as(read), self.head_factors
        )
        V = self.value_width
        out = self.out[:, first:end].unflatten(2, (G, -1)).permute(0, 2, 3, 1, 4)
        torch.div(read[..., :V], read[..., V : V + 1], out=out)
        offset = first + layout.num_past - layout.block_start(block)
        weights = weights.view_as(by_query)[..., S:]
        weights = weights[:, :, :, queries.start - offset : queries.stop - offset].float()
        missing = K + layout.window_width - weights.shape[4]
        return torch.nn.functional.pad(weights, (0, missing)) if missing else weights

    def _retained(self, block: int, indices: Tensor) -> Tensor:
        """Return keys and values of the retained pairs, these times exp(b): (B·G, K, D + C)."""
        B, G, K = indices.shape
        P, width = self.pairs.shape[2:]
        rows = indices + P * torch.arange(B * G, device=indices.device).view(B, G, 1)
        pairs = self.pairs.flatten(0, 2).index_select(0, rows.flatten()).view(B * G, K, width)
        factors = self.pair_factors.gather(2, indices).view(B * G, K, 1)
        pairs[..., self.key_width :].mul_(factors)
        if self.pinned is not None:
            keys = pairs[..., : self.key_width]
            moved = self.pinned.move_closer(keys.view(B, G, K, self.key_width), block, indices)
            pairs[..., : self.key_width] = moved.view_as(keys)
        return pairs

    def _mask_window(self, scores: Tensor, block: int) -> None:
        """Mask tokens of the window that queries do not attend to, in place.

        scores: (B, G, r, n, up to W - 1 + C).
        """
        layout = self.layout
        num_queries, width = scores.shape[3:]
        start = layout.block_start(block)
        offset = max(layout.num_past - start, 0)
        limit = layout.sliding_window
        if start - layout.window + 1 >= layout.sinks and (
            limit is None or limit >= layout.window_width
        ):
            # all but the block's own later tokens
            own = scores[..., layout.window - 1 :]
            own.masked_fill_(self.later[offset : offset + num_queries, : own.shape[4]], -torch.inf)
        else:
            mask = layout.window_mask(scores.device, block)[offset : offset + num_queries, :width]
            scores.masked_fill_(~mask, -torch.inf)


def _fill(out: Tensor, values: Tensor) -> None:
    """Write [values | 1] into zeros."""
    width = values.shape[3]
    out[..., :width] = values
    out[..., width] = 1
