"""Sliding-window attention with sinks, for a whole text or in chunks.

Token t attends to the tokens t - W < j ≤ t of its window, itself included, and to the sinks j < S.
Tokens from S + W on attend to the sinks at the distance of token S + W - 1, the window's edge (the
cache positions of StreamingLLM, arXiv 2309.17453), so that no distance is longer than in a text of
S + W tokens. Queries and keys come without positions and are rotated here, in every block by
positions counted from its first query: from 1 - W to below W + S (or BLOCK_SIZE). Nothing depends
on how far into the text they are.

Shapes: B batch, H query heads, G key-value heads, T new tokens, D key width, V value width, N
blocks of C queries, each with the L = W - 1 + C tokens that they may attend to.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.memory.eviction import RetainedState, RetentionPolicy, Rotate, num_recent
from infini.memory.packing import gather

BLOCK_SIZE = 64  # queries of a block, or the window if that is longer

# Softmax attention: q (n, H, C, ·), k (n, G, M, ·), v (n, G, M, V), mask (n, 1, C, M), True where
# a query attends to one of the M keys → (n, C, H, V)
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class WindowState(NamedTuple):
    """State of a layer between two calls; its size is constant."""

    sink_keys: Tensor
    """Keys of the first S tokens, without positions: (B, G, S, D)"""
    sink_values: Tensor
    """(B, G, S, V)"""
    keys: Tensor
    """Keys of the last W - 1 tokens, the latest at the end: (B, G, W - 1, D)"""
    values: Tensor
    """(B, G, W - 1, V)"""
    matrix: Tensor
    """Memory of what has left the next token's window, float32: (B, G, D, V); without a memory
    (B, G, 0, V)"""
    retained: RetainedState | None = None
    """Pairs that stay exact behind the window; with them, R recent tokens instead of W - 1"""

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

        S, num_held = chunk.sinks, num_recent(chunk.window) if num_retained else chunk.window - 1
        matrix = zeros(v, k.shape[3] if memory else 0).float()
        retained = None
        if num_retained:
            assert policy is not None
            retained = RetainedState.empty(k, v, num_retained, num_held, policy)
        window = zeros(k, num_held), zeros(v, num_held)
        return cls(zeros(k, S), zeros(v, S), *window, matrix, retained)

    def map(self, change: Callable[[Tensor], Tensor]) -> "WindowState":
        """Return the state with `change` applied to all tensors."""
        own = {name: change(tensor) for name, tensor in self.tensors().items()}
        return WindowState.from_tensors(own)

    def select(self, samples: Tensor) -> "WindowState":
        """Return the state of these samples, in this order; samples: (n,) int64."""
        return self.map(lambda t: t.index_select(0, samples.to(t.device)))

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        own = self._asdict()
        retained = own.pop("retained")
        if retained is None:
            return own
        return own | {f"retained.{name}": x for name, x in retained._asdict().items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "WindowState":
        """Return the state of named tensors, as `tensors` does; TypeError if one is missing."""
        prefix = "retained."
        retained = {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        own = {name: x for name, x in tensors.items() if not name.startswith(prefix)}
        return cls(**own, retained=RetainedState(**retained) if retained else None)

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def bytes_per_token(self) -> int:
        """Number of bytes of a token's key and value."""
        return sum(x.shape[1] * x.shape[3] * x.itemsize for x in (self.keys, self.values))

    @property
    def window_bytes(self) -> int:
        """Number of bytes of sinks and window."""
        return sum(tensor.nbytes for tensor in self[:4])


@dataclass(frozen=True)
class ChunkInfo:
    """Number of past and new tokens per sample of a call: T new ones, after those read before."""

    past_lengths: Tensor
    """Number of tokens read before: (B,) int64, on the CPU"""
    lengths: Tensor
    """Number of tokens among the T; the rest, at the end, is padding: (B,) int64, on the CPU"""
    num_tokens: int
    """T"""
    window: int
    """W, tokens"""
    sinks: int
    """S, tokens"""
    pinned: Tensor | None = None
    """Positions of pinned tokens, old and new ones, in order, -1 in empty slots, which come first:
    (B, M) int64, on the CPU; None: there are none"""

    @cached_property
    def _with_other_windows(self) -> dict[int, "ChunkInfo"]:
        return {}

    def with_window(self, window: int | None) -> "ChunkInfo":
        """Return the same tokens with a window of another size, once per size; None: this one."""
        if window is None:
            return self
        if window not in self._with_other_windows:
            self._with_other_windows[window] = replace(self, window=window)
        return self._with_other_windows[window]

    @cached_property
    def positions(self) -> Tensor:
        """Positions from the start of the text: (B, T), or (1, T) where all samples agree."""
        same = bool((self.past_lengths == self.past_lengths[0]).all())
        past = self.past_lengths[:1] if same else self.past_lengths
        return past[:, None] + torch.arange(self.num_tokens)

    @cached_property
    def blocks(self) -> tuple[int, int]:
        """Number of blocks and queries of a block, N and C."""
        size = min(self.num_tokens, max(self.window, BLOCK_SIZE))
        return -(-self.num_tokens // size), size

    @cached_property
    def evicted_mask(self) -> Tensor | None:
        """Mask of the first T of W - 1 + T tokens, True where one leaves the window; None: all do.

        These are the W - 1 tokens of the window before the call, then the new ones.
        """
        index = torch.arange(self.num_tokens)
        position = self.past_lengths[:, None] - (self.window - 1) + index
        evicted = (position >= self.sinks) & (index < self.lengths[:, None])
        return None if bool(evicted.all()) else evicted

    def mask(self, sliding_window: int | None, device: torch.device) -> Tensor:
        """Compute which sinks and window tokens a query attends to.

        Args:
            sliding_window: The base's own window, in tokens, where it has one.
            device: Device of the mask.

        Returns:
            The mask, (B·N, 1, C, S + L), True where a query attends to a key.
        """
        N, C = self.blocks
        W, S = self.window, self.sinks
        first = self.positions[:, :1].to(device)
        query = (first + torch.arange(N * C, device=device)).unflatten(1, (N, C))[..., None]
        key = torch.arange(C + W - 1, device=device) + torch.arange(N, device=device)[:, None] * C
        key = (first[..., None] - (W - 1) + key)[:, :, None]  # (B, N, 1, L)
        width = W if sliding_window is None else min(W, sliding_window)
        in_window = (key >= S) & (key <= query) & (query - key < width)
        sink = torch.arange(S, device=device)
        sinks = (sink <= query).expand(*query.shape[:3], S)
        if sliding_window is not None:
            sinks = sinks & (query.clamp(max=W + S - 1) - sink < sliding_window)
        mask = torch.cat([sinks, in_window], -1)  # (B or 1, N, C, S + L)
        return mask.expand(len(self.past_lengths), -1, -1, -1).flatten(0, 1)[:, None]

    def next_state(self, state: WindowState, k: Tensor, v: Tensor, matrix: Tensor) -> WindowState:
        """Return the state after the new tokens; retained pairs are the caller's to replace.

        Args:
            state: State before the call.
            k: New keys without positions, (B, G, T, D).
            v: New values, (B, G, T, V).
            matrix: Memory after the call.
        """
        S, past = self.sinks, self.past_lengths[:, None]
        slots = torch.arange(S).expand(len(past), -1)
        # Slot j holds token j: the old one, or new token j - past (an arbitrary one while the text
        # is shorter)
        source = slots.where(slots < past, (S + slots - past).clamp(max=S + self.num_tokens - 1))
        last = self.lengths[:, None] + torch.arange(state.keys.shape[2])

        def update(old_sinks: Tensor, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
            sinks = old_sinks
            if S and bool((past < S).any()):
                sinks = gather(torch.cat([old_sinks, new], 2), source.to(new.device), 2)
            held = torch.cat([old, new], 2)
            if bool((self.lengths == self.num_tokens).all()):
                return sinks, held[:, :, self.num_tokens :].clone()
            return sinks, gather(held, last.to(new.device), 2)

        sink_keys, keys = update(state.sink_keys, state.keys, k)
        sink_values, values = update(state.sink_values, state.values, v)
        return WindowState(sink_keys, sink_values, keys, values, matrix, state.retained)


def window_attention(
    q: Tensor,
    held: tuple[Tensor, Tensor],
    sinks: tuple[Tensor, Tensor],
    chunk: ChunkInfo,
    attention: Attention,
    rotate: Rotate | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Compute the new tokens' attention to sinks and window.

    Args:
        q: Queries without positions, (B, H, T, D).
        held: Keys and values of the W - 1 tokens before and the T new ones, (B, G, W - 1 + T, ·).
        sinks: Keys and values of the first S tokens, new ones included, (B, G, S, ·).
        chunk: Number of past and new tokens per sample.
        attention: The base's softmax attention.
        rotate: Gives q and k their positions; None: they have none, or have them already.
        sliding_window: The base's own window, in tokens, where it has one.

    Returns:
        The output, (B, T, H, V).
    """
    N, C = chunk.blocks
    W, S, D = chunk.window, chunk.sinks, q.shape[-1]
    k, v = (_unfold_blocks(x, N, C, W - 1 + C) for x in held)  # (B·N, G, L, ·)
    sink_k, sink_v = sinks
    block_q = _unfold_blocks(q, N, C, C)  # (B·N, H, C, D)
    if rotate is not None:
        positions = torch.arange(1 - W, C, device=q.device)[None]
        block_q, k = rotate(block_q, positions[:, W - 1 :]), rotate(k, positions)
        if S:
            # Queries are [rotated for the window | rotated for sinks]; a key is zero in the half
            # that is not its own.
            sink_q = rotate(q, chunk.positions.clamp(max=W + S - 1).to(q.device))
            block_q = torch.cat([block_q, _unfold_blocks(sink_q, N, C, C)], -1)  # (B·N, H, C, 2 D)
            k = F.pad(k, (0, D))
            sink_k = F.pad(rotate(sink_k, torch.arange(S, device=q.device)[None]), (D, 0))
    if S:
        k = torch.cat([_repeat_per_block(sink_k, N), k], 2)
        v = torch.cat([_repeat_per_block(sink_v, N), v], 2)
    out = attention(block_q, k, v, chunk.mask(sliding_window, q.device))  # (B·N, C, H, V)
    return out.unflatten(0, (-1, N)).flatten(1, 2)[:, : chunk.num_tokens]


def _unfold_blocks(x: Tensor, num_blocks: int, size: int, width: int) -> Tensor:
    """(B, H, ·, D) → (B·N, H, width, D): from every `size`-th token on, zeros behind the end."""
    missing = (num_blocks - 1) * size + width - x.shape[2]
    x = F.pad(x, (0, 0, 0, missing)) if missing else x
    return x.unfold(2, width, size).permute(0, 2, 1, 4, 3).flatten(0, 1)


def _repeat_per_block(x: Tensor, num_blocks: int) -> Tensor:
    """(B, G, S, D) → (B·N, G, S, D)."""
    return x[:, None].expand(-1, num_blocks, -1, -1, -1).flatten(0, 1)
