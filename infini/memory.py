"""Compressive memory: Infini-attention's associative matrix, parallel over segments.

arXiv 2404.07143, equations 3-5. A token reads the memory as it stood after the
segment before its own; a segment is written once it is complete. The linear rule
is an exclusive cumulative sum; the delta rule is affine in the memory, so all but
one (D, D) product a segment is batched. Everything accumulates in float32 at least.

Shapes: B batch, H heads, T tokens, L segment length, S segments, D key width, Dv value width.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Update = Literal["linear", "delta"]
EPSILON = 1e-6  # floor of a read's denominator


class MemoryState(NamedTuple):
    """All that later tokens need: a value, of the same size at any length."""

    matrix: Tensor  # M: (B, H, D, Dv)
    normalizer: Tensor  # z: (B, H, D)
    keys: Tensor  # of the incomplete last segment, before σ: (B, H, P, D), P < L
    values: Tensor  # (B, H, P, Dv)
    mask: Tensor  # which of them are real tokens: (B, P), bool

    def detach(self) -> "MemoryState":
        """The same state without the graph that led to it."""
        return MemoryState(*(t.detach() for t in self))


@dataclass
class Frames:
    """Queries, keys and values laid out by segment, the state's incomplete one in front."""

    q: Tensor  # (B, H, S, L, D)
    k: Tensor  # (B, H, S, L, D)
    v: Tensor  # (B, H, S, L, Dv)
    mask: Tensor  # real tokens: (B, S, L), bool
    pending: int  # P: tokens in front that were read before
    tokens: int  # T: tokens that are new

    @cached_property
    def queries(self) -> Tensor:
        """σ(Q): (B, H, S, L, D)."""
        return feature_map(self.q)

    @cached_property
    def keys(self) -> Tensor:
        """σ(K), zero on padding: (B, H, S, L, D)."""
        return feature_map(self.k) * self.mask[:, None, :, :, None]


def feature_map(x: Tensor) -> Tensor:
    """σ(x) = ELU(x) + 1, in float32 at least."""
    return F.elu(x if x.dtype == torch.float64 else x.float()) + 1


def make_frames(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segment_length: int,
    state: MemoryState | None,
    mask: Tensor | None,
) -> Frames:
    """Prepend the state's pending tokens, pad to whole segments, split by segment."""
    batch, _, tokens, _ = q.shape
    if mask is None:
        mask = q.new_ones(batch, tokens, dtype=torch.bool)
    pending = 0 if state is None else state.keys.shape[2]
    if state is not None and pending:
        k = torch.cat([state.keys.to(k.dtype), k], 2)
        v = torch.cat([state.values.to(v.dtype), v], 2)
        mask = torch.cat([state.mask, mask], 1)
    padding = -(pending + tokens) % segment_length
    q = F.pad(q, (0, 0, pending, padding))
    k, v = (F.pad(x, (0, 0, 0, padding)) for x in (k, v))
    mask = F.pad(mask, (0, padding))

    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, segment_length))  # (B, H, S*L, D) → (B, H, S, L, D)

    segments = mask.unflatten(1, (-1, segment_length))  # (B, S*L) → (B, S, L)
    return Frames(split(q), split(k), split(v), segments, pending, tokens)


def merge_frames(x: Tensor, frames: Frames) -> Tensor:
    """(B, H, S, L, Dv) → the new tokens' (B, H, T, Dv)."""
    return x.flatten(2, 3)[:, :, frames.pending : frames.pending + frames.tokens]


def read_and_write(
    frames: Frames, update: Update, state: MemoryState | None
) -> tuple[Tensor, Tensor, MemoryState]:
    """Read before every segment, write every complete one.

    Returns the reads (B, H, S, L, Dv), zero while the memory is empty; whether anything had been
    written before each segment (B, S); and the state after the last token.
    """
    keys, values = frames.keys, frames.v.to(frames.keys.dtype)
    batch, heads, _, length, width = keys.shape
    if state is None:
        matrix = keys.new_zeros(batch, heads, width, values.shape[-1])
        normalizer = keys.new_zeros(batch, heads, width)
    else:
        matrix, normalizer = state.matrix.to(keys.dtype), state.normalizer.to(keys.dtype)

    # z before every segment and after the last: (B, H, S + 1, D)
    normalizers = torch.cat([normalizer[:, :, None], keys.sum(3)], 2).cumsum(2)
    writes = keys.transpose(-1, -2) @ values  # (B, H, S, D, Dv)
    # A document's first segment finds nothing to read or to correct.
    fresh = 1 if state is None else 0
    if update == "linear":
        # M before every segment and after the last: (B, H, S + 1, D, Dv)
        matrices = torch.cat([matrix[:, :, None], writes], 2).cumsum(2)
    else:
        erasures = _erasures(keys[:, :, fresh:], normalizers[:, :, fresh:-1])
        matrices = _delta_scan(matrix, F.pad(erasures, (0, 0, 0, 0, fresh, 0)), writes)

    queries, before = frames.queries[:, :, fresh:], normalizers[:, :, fresh:-1, :, None]
    reads = queries @ matrices[:, :, fresh:-1] / (queries @ before).clamp_min(EPSILON)
    reads = F.pad(reads, (0, 0, 0, 0, fresh, 0))  # (B, H, S, L, Dv)
    written = (normalizers[:, 0, :-1] > 0).any(-1)  # (B, S)

    end = frames.pending + frames.tokens
    whole = end // length

    def rest(x: Tensor) -> Tensor:
        return x.flatten(2, 3)[:, :, whole * length : end]

    after = MemoryState(
        matrices[:, :, whole],
        normalizers[:, :, whole],
        rest(frames.k),
        rest(frames.v),
        frames.mask.flatten(1, 2)[:, whole * length : end],
    )
    return reads, written, after


def _erasures(keys: Tensor, normalizers: Tensor) -> Tensor:
    """A = σ(K)ᵀ diag(1 / σ(K)z) σ(K) of every segment; (B, H, S, D, D)."""
    known = keys @ normalizers[..., None]  # σ(K)z: (B, H, S, L, 1), zero while the memory is empty
    weights = torch.where(known > 0, 1 / known.clamp_min(EPSILON), 0)
    return keys.transpose(-1, -2) @ (keys * weights)


def _delta_scan(matrix: Tensor, erasures: Tensor, writes: Tensor) -> Tensor:
    """M_s = (I - A_s) M_{s-1} + σ(K)ᵀV, as read_and_write needs it; (B, H, S + 1, D, Dv)."""
    matrices = [matrix]
    for erasure, write in zip(erasures.unbind(2), writes.unbind(2), strict=True):
        matrices.append(matrices[-1] - erasure @ matrices[-1] + write)
    return torch.stack(matrices, 2)


def compressive_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    segment_length: int,
    update: Update = "linear",
    state: MemoryState | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, MemoryState]:
    """Read the memory with `q`, write `k` → `v` into it, segment by segment.

    q, k: (B, H, T, D) before σ; v: (B, H, T, Dv); mask: (B, T), False where a token is padding,
    never written; any T. Returns (B, H, T, Dv), zeros while the memory is empty, and the state.
    Feeding a document in any chunks, the state passed on, gives what feeding it whole gives.
    """
    frames = make_frames(q, k, v, segment_length, state, mask)
    reads, _, state = read_and_write(frames, update, state)
    return merge_frames(reads, frames).to(v.dtype), state
