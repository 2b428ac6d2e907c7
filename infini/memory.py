"""Compressive memory: Infini-attention's associative matrix, parallel over segments.

arXiv 2404.07143, equations 3-5. A token reads the memory as it stood after the
segment before its own; a segment is written once it is complete.

Shapes: B batch, H query heads, G key-value heads, T tokens, L segment length, S segments,
D key width, V value width, C columns of the memory (see `recall`).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.ragged import Packing, Part, drive, split
from infini.recall import Update, columns, recall

# Attention within a segment: (N, H, t, D) queries at given slots (N or 1, t) of a segment whose
# keys and values, (N, G, n, ·), start at slot 0; None: slots 0 to t - 1, and t = n.
Local = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class MemoryState(NamedTuple):
    """All that later tokens need: a value, of the same size after any number of tokens."""

    matrix: Tensor  # M: (B, G, D, V)
    normalizer: Tensor  # z: (B, G, D)
    keys: Tensor  # of the segment begun, before σ, zero beyond `pending`: (B, G, L, D)
    values: Tensor  # (B, G, L, V)
    pending: Tensor  # tokens of the segment begun, less than L: (B,) int64, on the CPU

    @classmethod
    def empty(cls, k: Tensor, v: Tensor, segment_length: int) -> "MemoryState":
        """Nothing written; k: (B, G, T, D), v: (B, G, T, V) give sizes, types and device."""
        batch, heads, _, width = k.shape
        dtype = k.dtype if k.dtype == torch.float64 else torch.float32
        return cls(
            k.new_zeros(batch, heads, width, v.shape[-1], dtype=dtype),
            k.new_zeros(batch, heads, width, dtype=dtype),
            k.new_zeros(batch, heads, segment_length, width),
            v.new_zeros(batch, heads, segment_length, v.shape[-1]),
            torch.zeros(batch, dtype=torch.int64),
        )

    def detach(self) -> "MemoryState":
        """The same state without the graph that led to it."""
        return MemoryState(*(tensor.detach() for tensor in self))

    def select(self, samples: Tensor) -> "MemoryState":
        """The state of these samples, in this order; samples: (n,) int64."""
        return MemoryState(*(t.index_select(0, samples.to(t.device)) for t in self))

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self)


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

    q: (B, H, T, D) and k: (B, G, T, D) before σ; v: (B, G, T, V); G divides H; any T; mask:
    (B, T), False on padding, which is skipped: neither read from nor written. Returns
    (B, H, T, V), zeros while the memory is empty and on padding, and the state. Feeding a
    document in any chunks, the state passed on, gives what feeding it whole gives.
    """
    packing = Packing.of(q.shape[0], q.shape[2], mask)
    q, k, v = (packing.pack(x, 2) for x in (q, k, v))
    out, state = attend(q, k, v, packing.lengths, segment_length, update, state)
    return packing.unpack(out, 2).to(v.dtype), state


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    segment_length: int,
    update: Update,
    state: MemoryState | None = None,
    local: Local | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, MemoryState]:
    """Reads of the memory, mixed by `gate` (H,) with `local` attention where that is given.

    Shapes as in `compressive_memory`; lengths: (B,) int64 on the CPU, a sample's real tokens,
    padding behind them. Returns (B, H, T, V), zero on padding, and the state.
    """
    state = MemoryState.empty(k, v, segment_length) if state is None else state
    if state.keys.shape[2] != segment_length:
        raise ValueError(
            f"the state is of segments of {state.keys.shape[2]} tokens, not of {segment_length}"
        )

    def step(part: Part) -> Tensor:
        nonlocal state
        assert state is not None
        run = _whole_segments if part is whole else _begun_segment
        taken = [part.take(x, 2) for x in (q, k, v)]
        out, state = run(taken[0], taken[1], taken[2], part.counts, state, update, local, gate)
        return out

    parts = split(state.pending, lengths, segment_length)
    whole = parts[1]
    out = drive(step, parts, q.shape[2], 2)
    return q.new_zeros(*q.shape[:3], v.shape[-1]) if out is None else out, state


def _extended(state: MemoryState) -> Tensor:
    """[M | z | 0]: (B, G, D, C)."""
    values = state.matrix.shape[-1]
    both = torch.cat([state.matrix, state.normalizer[..., None]], -1)
    return F.pad(both, (0, columns(values) - values - 1))


def _whole_segments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: Tensor,
    state: MemoryState,
    update: Update,
    local: Local | None,
    gate: Tensor | None,
) -> tuple[Tensor, MemoryState]:
    """Samples of whole segments, nothing pending where there are any: (B, H, S·L, V)."""
    length, values, segments = state.keys.shape[2], v.shape[-1], q.shape[2] // state.keys.shape[2]
    here = None
    if local is not None:
        # (B, H, S·L, D) → (B·S, H, L, D): views of what a projection returns
        rows = [x.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
        here = local(rows[0], rows[1], rows[2], None).unflatten(0, (len(q), -1))
        here = here.transpose(1, 2).flatten(2, 3)  # (B, S, H, L, V) → (B, H, S·L, V)
    out, memory = recall(q, k, v, segments, _extended(state), counts // length, update, here, gate)
    matrix, normalizer = memory[..., :values], memory[..., values]
    return out, state._replace(matrix=matrix, normalizer=normalizer)


def _begun_segment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: Tensor,
    state: MemoryState,
    update: Update,
    local: Local | None,
    gate: Tensor | None,
) -> tuple[Tensor, MemoryState]:
    """Some more tokens of the segment begun, up to its end at most: (B, H, t, V)."""
    length, values, tokens = state.keys.shape[2], v.shape[-1], q.shape[2]
    filled = state.pending + counts
    used = int(filled.max())
    at = (state.pending[:, None] + torch.arange(tokens)).to(k.device)  # slots: (B, t)
    keys, begun = _insert(state.keys, k, state.pending), _insert(state.values, v, state.pending)
    here = None
    if local is not None:
        fresh = not state.pending.any() and tokens == used
        slots = None if fresh else at.clamp(max=length - 1)
        here = local(q, keys[:, :, :used], begun[:, :, :used], slots)  # (B, H, t, V)
    complete = filled // length  # 0 or 1
    written = length if complete.any() else 0
    out, memory = recall(
        q, keys[:, :, :written], begun[:, :, :written], 1,
        _extended(state), complete, update, here, gate,
    )  # fmt: skip
    pending = filled % length
    kept = (torch.arange(length) < pending[:, None])[:, None, :, None].to(k.device)  # (B, 1, L, 1)
    keys, begun = keys.where(kept, 0), begun.where(kept, 0)
    return out, MemoryState(memory[..., :values], memory[..., values], keys, begun, pending)


def _insert(slots: Tensor, new: Tensor, at: Tensor) -> Tensor:
    """`slots` (B, G, L, D) with `new` (B, G, t, D) from slot `at` (B,) on; the excess is cut."""
    length, tokens = slots.shape[2], new.shape[2]
    new = new.to(slots.dtype)
    if (at == at[0]).all():
        start = int(at[0])
        return torch.cat([slots[:, :, :start], new, slots[:, :, start + tokens :]], 2)[
            :, :, :length
        ]
    index = (at[:, None] + torch.arange(tokens)).to(new.device)[:, None, :, None].expand_as(new)
    return F.pad(slots, (0, 0, 0, tokens)).scatter(2, index, new)[:, :, :length]
