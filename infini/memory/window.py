"""Attention to a text's first S tokens and its last W, whole or as it comes, and no more kept.

Token t sees the tokens t - W < j ≤ t of its window, itself included, and the sinks j < S. Behind
the window's edge a sink stands at the edge's distance: tokens from S + W on see it as token
S + W - 1 does (the cache positions of StreamingLLM, arXiv 2309.17453), so that no distance is
longer than a text of S + W tokens has. Queries and keys come without positions and are rotated
here, a block from its first query on: by numbers from 1 - W to below W + S (or BLOCK). Nothing
depends on how far into the text they are.

Shapes: B batch, H query heads, G key-value heads, T new tokens, D key width, V value width, N
blocks of C queries, each beside the K = W - 1 + C tokens that they may see.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.memory.eviction import RetainedState, RetentionPolicy, num_recent
from infini.memory.packing import gather

BLOCK = 64  # queries of a block, where the window is shorter

Rotate = Callable[[Tensor, Tensor], Tensor]  # (B, H, T, D) and positions, (B or 1, T)
# Softmax attention: q (n, H, C, ·), k (n, G, K, ·), v (n, G, K, V), mask (n, 1, C, K), True where
# it may look → (n, C, H, V)
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class WindowState(NamedTuple):
    """What later tokens need of a layer, of the same size after any number of tokens."""

    sink_keys: Tensor  # of the first S tokens: (B, G, S, D)
    sink_values: Tensor  # (B, G, S, V)
    keys: Tensor  # of the last W - 1, the latest at the end: (B, G, W - 1, D)
    values: Tensor  # (B, G, W - 1, V)
    # What has left the window of the next token: (B, G, D, V), float32; (B, G, 0, V): no memory
    matrix: Tensor
    # Pairs that stay exact behind the window, with R recent tokens instead of W - 1; None: none
    retained: RetainedState | None = None

    @classmethod
    def empty(
        cls,
        k: Tensor,
        v: Tensor,
        chunk: "ChunkInfo",
        memory: bool,
        num_retained: int = 0,
        policy: RetentionPolicy | None = None,
    ) -> "WindowState":
        """Return the state before the first token.

        Args:
            k: Keys, (B, G, ·, D), which give size, type and device.
            v: Values, (B, G, ·, V).
            chunk: Gives window and sinks.
            memory: Whether the layer has a matrix.
            num_retained: Retained pairs of a key-value head, K.
            policy: Retention policy, where there are any.
        """

        def zeros(like: Tensor, tokens: int) -> Tensor:
            return like.new_zeros(*like.shape[:2], tokens, like.shape[3])

        S, held = chunk.sinks, num_recent(chunk.window) if num_retained else chunk.window - 1
        matrix = zeros(v, k.shape[3] if memory else 0).float()
        retained = None
        if num_retained:
            assert policy is not None
            retained = RetainedState.empty(k, v, num_retained, held, policy)
        return cls(zeros(k, S), zeros(v, S), zeros(k, held), zeros(v, held), matrix, retained)

    def map(self, change: Callable[[Tensor], Tensor]) -> "WindowState":
        """All its tensors changed."""
        own = {name: change(tensor) for name, tensor in self.tensors().items()}
        return WindowState.of_tensors(own)

    def select(self, samples: Tensor) -> "WindowState":
        """The state of these samples, in this order; samples: (n,) int64."""
        return self.map(lambda t: t.index_select(0, samples.to(t.device)))

    def tensors(self) -> dict[str, Tensor]:
        """All of them by name."""
        own = self._asdict()
        retained = own.pop("retained")
        if retained is None:
            return own
        return own | {f"retained.{name}": x for name, x in retained._asdict().items()}

    @classmethod
    def of_tensors(cls, tensors: dict[str, Tensor]) -> "WindowState":
        """The inverse of `tensors`; TypeError where one is missing."""
        prefix = "retained."
        retained = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        own = {name: x for name, x in tensors.items() if not name.startswith(prefix)}
        return cls(**own, retained=RetainedState(**retained) if retained else None)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def window_bytes(self) -> int:
        """Of sinks and window, without what is behind it."""
        return sum(tensor.nbytes for tensor in self[:4])


@dataclass(frozen=True)
class ChunkInfo:
    """The new tokens of a batch, T of each sample, behind what it has read before."""

    past_lengths: Tensor  # tokens read before: (B,) int64, on the CPU
    lengths: Tensor  # real ones of the T, which come first: (B,) int64, on the CPU
    num_tokens: int  # T
    window: int  # W
    sinks: int  # S

    @cached_property
    def positions(self) -> Tensor:
        """Of the tokens, from the text's start: (B, T), or (1, T) where all samples agree."""
        counts = (
            self.past_lengths[:1]
            if bool((self.past_lengths == self.past_lengths[0]).all())
            else self.past_lengths
        )
        return counts[:, None] + torch.arange(self.num_tokens)

    @cached_property
    def blocks(self) -> tuple[int, int]:
        """N and C."""
        size = min(self.num_tokens, max(self.window, BLOCK))
        return -(-self.num_tokens // size), size

    @cached_property
    def evicted_mask(self) -> Tensor | None:
        """Which of the first T of `joined` tokens leave the window: (B, T); None: all."""
        at = torch.arange(self.num_tokens)
        number = self.past_lengths[:, None] - (self.window - 1) + at  # from the text's start
        leaves = (number >= self.sinks) & (at < self.lengths[:, None])
        return None if bool(leaves.all()) else leaves

    def mask(self, limit: int | None, device: torch.device) -> Tensor:
        """Which of the S sinks and K keys a query sees: (B·N, 1, C, S + K), True where it does.

        limit: the base's own window, in tokens, where it has one.
        """
        N, C = self.blocks
        W, S = self.window, self.sinks
        first = self.positions[:, :1].to(device)
        query = (first + torch.arange(N * C, device=device)).unflatten(1, (N, C))[..., None]
        key = torch.arange(C + W - 1, device=device) + torch.arange(N, device=device)[:, None] * C
        key = (first[..., None] - (W - 1) + key)[:, :, None]  # (B, N, 1, K)
        reach = W if limit is None else min(W, limit)
        near = (key >= S) & (key <= query) & (query - key < reach)
        sink = torch.arange(S, device=device)
        far = (sink <= query).expand(*query.shape[:3], S)
        if limit is not None:
            far = far & (query.clamp(max=W + S - 1) - sink < limit)
        mask = torch.cat([far, near], -1)  # (B or 1, N, C, S + K)
        return mask.expand(len(self.past_lengths), -1, -1, -1).flatten(0, 1)[:, None]

    def next_state(self, state: WindowState, k: Tensor, v: Tensor, matrix: Tensor) -> WindowState:
        """The state after the new tokens; k, v: (B, G, T, ·)."""
        S = self.sinks
        slots = torch.arange(S).expand(len(self.past_lengths), -1)
        counts = self.past_lengths[:, None]
        # Slot j holds token j: the old one, or new token j - counts (any, where there is none yet)
        source = slots.where(
            slots < counts, (S + slots - counts).clamp(max=S + self.num_tokens - 1)
        )
        last = self.lengths[:, None] + torch.arange(state.keys.shape[2])

        def keep(old_sinks: Tensor, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
            sinks = old_sinks
            if S and bool((counts < S).any()):
                sinks = gather(torch.cat([old_sinks, new], 2), source.to(new.device), 2)
            joined = torch.cat([old, new], 2)
            if bool((self.lengths == self.num_tokens).all()):
                return sinks, joined[:, :, self.num_tokens :].clone()
            return sinks, gather(joined, last.to(new.device), 2)

        sink_keys, keys = keep(state.sink_keys, state.keys, k)
        sink_values, values = keep(state.sink_values, state.values, v)
        return WindowState(sink_keys, sink_values, keys, values, matrix, state.retained)


def window_attention(
    q: Tensor,
    joined: tuple[Tensor, Tensor],
    sinks: tuple[Tensor, Tensor],
    span: ChunkInfo,
    attention: Attention,
    rotate: Rotate | None = None,
    limit: int | None = None,
) -> Tensor:
    """Every new token's attention to sinks and window: (B, T, H, V).

    q: (B, H, T, D). joined: keys and values of the W - 1 tokens before and the T new ones, (B, G,
    W - 1 + T, ·). sinks: those of the first S tokens, (B, G, S, ·), new ones included. rotate:
    gives q and k their positions; None: they have none, or have them already. limit: the base's
    own window, where it has one.
    """
    N, C = span.blocks
    W, S, D = span.window, span.sinks, q.shape[-1]
    k, v = (_by_block(x, N, C, W - 1 + C) for x in joined)  # (B·N, G, K, ·)
    sink_k, sink_v = sinks
    near = _by_block(q, N, C, C)  # (B·N, H, C, D)
    if rotate is not None:
        here = torch.arange(1 - W, C, device=q.device)[None]
        near, k = rotate(near, here[:, W - 1 :]), rotate(k, here)
        if S:
            # A score is q·k of the window or of the sinks: the one beside zeros of the other.
            far = rotate(q, span.positions.clamp(max=W + S - 1).to(q.device))
            near = torch.cat([near, _by_block(far, N, C, C)], -1)  # (B·N, H, C, 2 D)
            k = F.pad(k, (0, D))
            sink_k = F.pad(rotate(sink_k, torch.arange(S, device=q.device)[None]), (D, 0))
    if S:
        k = torch.cat([_to_each(sink_k, N), k], 2)
        v = torch.cat([_to_each(sink_v, N), v], 2)
    out = attention(near, k, v, span.mask(limit, q.device))  # (B·N, C, H, V)
    return out.unflatten(0, (-1, N)).flatten(1, 2)[:, : span.num_tokens]


def _by_block(x: Tensor, blocks: int, size: int, width: int) -> Tensor:
    """(B, H, ·, D) → (B·N, H, width, D): from every `size`-th token on, zeros behind the end."""
    missing = (blocks - 1) * size + width - x.shape[2]
    x = F.pad(x, (0, 0, 0, missing)) if missing else x
    return x.unfold(2, width, size).permute(0, 2, 1, 4, 3).flatten(0, 1)


def _to_each(x: Tensor, blocks: int) -> Tensor:
    """(B, G, S, D) → (B·N, G, S, D)."""
    return x[:, None].expand(-1, blocks, -1, -1, -1).flatten(0, 1)
