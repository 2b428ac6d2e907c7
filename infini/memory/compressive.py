"""Compressive memory: Infini-attention's associative matrix, parallel over segments.

arXiv 2404.07143, equations 3-5. A token reads the memory as it stood after the segment before its
own; a segment is written once it is complete.

Shapes: B batch, H query heads, G key-value heads, T tokens, L segment length, S segments,
D key width, V value width, C columns of the memory (see `buffers`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.choices import MemoryMode, Update, check_choice, check_integer
from infini.errors import InputError
from infini.memory.buffers import memory_columns
from infini.memory.packing import Packing, Part, run_parts, split, swap_halves
from infini.memory.reads import LocalMix
from infini.memory.segment_scan import SegmentPlan, read_and_write

# Attention within a segment: queries, (N, H, t, D), at slots (N or 1, t) of a segment whose keys
# and values, (N, G, n, ·), start at slot 0; None: slots 0 to t - 1, and t = n.
LocalAttention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class MemorySpec:
    """Write rule of a compressive memory, and the local attention that its reads are mixed with."""

    segment_length: int
    """L, tokens"""
    update: Update
    """Write rule"""
    local: LocalAttention | None = None
    """Local attention; None: the output is the reads alone"""
    gate: Tensor | None = None
    """Weight of a read in the output, the rest is local: (H,)"""
    mode: MemoryMode = "own"
    """Whose memory is read; "swapped": the halves of a batch read each other's"""

    def mix(self, local: Tensor | None) -> LocalMix | None:
        """Return local attention's output with the gate, None without either."""
        return None if local is None or self.gate is None else LocalMix(local, self.gate)


class MemoryState(NamedTuple):
    """State of a compressive memory, passed on from call to call; its size is constant."""

    matrix: Tensor
    """M: (B, G, D, V), float32 at least"""
    normalizer: Tensor
    """z: (B, G, D), float32 at least"""
    keys: Tensor
    """Keys of the incomplete segment, before σ, zero beyond `pending`: (B, G, L, D)"""
    values: Tensor
    """Values of the incomplete segment, zero beyond `pending`: (B, G, L, V)"""
    pending: Tensor
    """Number of tokens of the incomplete segment, below L: (B,) int64, on the CPU"""

    @classmethod
    def empty(cls, k: Tensor, v: Tensor, segment_length: int) -> "MemoryState":
        """Return the state before the first token.

        Args:
            k: Keys, (B, G, T, D), which give size, type and device.
            v: Values, (B, G, T, V).
            segment_length: L, tokens.
        """
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
        """Return the state detached from the autograd graph."""
        return MemoryState(*(tensor.detach() for tensor in self))

    def select(self, samples: Tensor) -> "MemoryState":
        """Return the state of these samples, in this order; samples: (n,) int64."""
        return MemoryState(*(t.index_select(0, samples.to(t.device)) for t in self))

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self)


# Computes a part of a text: (q, k, v, number of tokens of its samples, spec, state) → (out, state)
_Compute = Callable[
    [Tensor, Tensor, Tensor, Tensor, MemorySpec, MemoryState], tuple[Tensor, MemoryState]
]


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

    Infini-attention's memory, arXiv 2404.07143, equations 3-5. Reading a document in any chunks,
    the state passed on, gives the same result as reading it whole.

    Args:
        q: Queries before σ = ELU + 1, (B, H, T, D), any T.
        k: Keys before σ, (B, G, T, D); G divides H.
        v: Values, (B, G, T, V).
        segment_length: L, tokens.
        update: Write rule, "linear" (equation 4) or "delta" (equation 5).
        state: State after the tokens before; None: there are none.
        mask: (B, T), False on padding, which is neither read from nor written.

    Returns:
        The reads, (B, H, T, V), of v's type, zero while the memory is empty and on padding, and
        the state after the last token.

    Raises:
        InputError: An unknown update, shapes that do not fit, or a state of other sizes.

    Examples:
        >>> q = k = v = torch.randn(1, 4, 1000, 64)
        >>> out, state = compressive_memory(q, k, v, segment_length=256, update="delta")
    """
    check_choice("update", update, Update)
    check_integer("segment_length", segment_length, 1)
    _check_shapes(q, k, v)
    packing = Packing.from_mask(q.shape[0], q.shape[2], mask)
    q, k, v = (packing.pack(x, 2) for x in (q, k, v))
    out, state = attend(q, k, v, packing.lengths, MemorySpec(segment_length, update), state)
    return packing.unpack(out, 2).to(v.dtype), state


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    spec: MemorySpec,
    state: MemoryState | None = None,
) -> tuple[Tensor, MemoryState]:
    """Read and write the memory; mix the reads with local attention where the spec has one.

    Args:
        q: As in `compressive_memory`, like k and v.
        k: Keys.
        v: Values.
        lengths: Number of real tokens, padding is at the end: (B,) int64, on the CPU.
        spec: Write rule and local attention.
        state: State after the tokens before; None: there are none.

    Returns:
        The output, (B, H, T, V), zero on padding, and the state.

    Raises:
        InputError: The state is of another segment length, batch or size of heads.
    """
    current = MemoryState.empty(k, v, spec.segment_length) if state is None else state
    length = current.keys.shape[2]
    if length != spec.segment_length:
        raise InputError(
            f"segment_length must be {length}, as in the state, got {spec.segment_length}"
        )
    expected = (*k.shape[:2], k.shape[3], v.shape[3])
    if current.matrix.shape != expected:
        raise InputError(
            "state must be of (batch, heads, key width, value width) "
            f"{expected}, got {tuple(current.matrix.shape)}"
        )

    def run(compute: _Compute, part: Part) -> Tensor:
        nonlocal current
        taken = part.take(q, 2), part.take(k, 2), part.take(v, 2)
        out, current = compute(*taken, part.counts, spec, current)
        return out

    out = run_parts(
        split(current.pending, lengths, spec.segment_length),
        q.shape[2],
        2,
        run_partial=partial(run, _partial_segment),
        run_segments=partial(run, _whole_segments),
    )
    return q.new_zeros(*q.shape[:3], v.shape[-1]) if out is None else out, current


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise InputError if the shapes of q, k and v do not fit."""
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in zip("qkv", (q, k, v), strict=True))
    fit = (
        q.ndim == k.ndim == v.ndim == 4
        and len(q) == len(k) == len(v)
        and q.shape[2] == k.shape[2] == v.shape[2]
        and q.shape[3] == k.shape[3]
        and k.shape[1] == v.shape[1]
        and q.shape[1] % max(1, k.shape[1]) == 0
    )
    if not fit:
        raise InputError(
            f"q, k, v must be (B, H, T, D), (B, G, T, D), (B, G, T, V), G dividing H; got {shapes}"
        )


def _extended(state: MemoryState) -> Tensor:
    """Return [M | z | 0]: (B, G, D, C)."""
    values = state.matrix.shape[-1]
    both = torch.cat([state.matrix, state.normalizer[..., None]], -1)
    return F.pad(both, (0, memory_columns(values) - values - 1))


def _read_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: MemoryState,
    plan: SegmentPlan,
    spec: MemorySpec,
    local: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Read and write in the memory mode: the output, (B, H, t, V), and the memory, [M | z | 0]."""
    if spec.mode == "off" and local is not None:
        return local, _extended(state)
    if spec.mode != "swapped":
        return read_and_write(q, k, v, _extended(state), plan, spec.mix(local))
    # Queries and local attention are swapped, memories stay with the sample that writes them.
    local = None if local is None else swap_halves(local)
    out, memory = read_and_write(swap_halves(q), k, v, _extended(state), plan, spec.mix(local))
    return swap_halves(out), memory


def _whole_segments(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, spec: MemorySpec, state: MemoryState
) -> tuple[Tensor, MemoryState]:
    """Attend for whole segments, with nothing pending: (B, H, S·L, V)."""
    length, values = spec.segment_length, v.shape[-1]
    local = None
    if spec.local is not None:
        # (B, H, S·L, D) → (B·S, H, L, D): views of what a projection returns
        rows = [x.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
        local = spec.local(rows[0], rows[1], rows[2], None).unflatten(0, (len(q), -1))
        local = local.transpose(1, 2).flatten(2, 3)  # (B, S, H, L, V) → (B, H, S·L, V)
    plan = SegmentPlan(q.shape[2] // length, counts // length, spec.update)
    out, memory = _read_and_write(q, k, v, state, plan, spec, local)
    return out, state._replace(matrix=memory[..., :values], normalizer=memory[..., values])


def _partial_segment(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, spec: MemorySpec, state: MemoryState
) -> tuple[Tensor, MemoryState]:
    """Attend for more tokens of the incomplete segment, at most to its end: (B, H, t, V)."""
    length, values, tokens = spec.segment_length, v.shape[-1], q.shape[2]
    filled = state.pending + counts
    keys, pending_values = (
        _insert(state.keys, k, state.pending),
        _insert(state.values, v, state.pending),
    )
    local = None
    if spec.local is not None:
        width = int(filled.max())
        slots = None
        if state.pending.any() or tokens != width:
            slots = (state.pending[:, None] + torch.arange(tokens)).clamp(max=length - 1)  # (B, t)
            slots = slots.to(k.device)
        local = spec.local(
            q, keys[:, :, :width], pending_values[:, :, :width], slots
        )  # (B, H, t, V)
    complete = filled // length  # 0 or 1
    written = length if complete.any() else 0
    plan = SegmentPlan(1, complete, spec.update)
    out, memory = _read_and_write(
        q, keys[:, :, :written], pending_values[:, :, :written], state, plan, spec, local
    )
    pending = filled % length
    is_pending = (torch.arange(length) < pending[:, None])[:, None, :, None]  # (B, 1, L, 1)
    is_pending = is_pending.to(k.device)
    keys, pending_values = keys.where(is_pending, 0), pending_values.where(is_pending, 0)
    return out, MemoryState(
        memory[..., :values], memory[..., values], keys, pending_values, pending
    )


def _insert(slots: Tensor, new: Tensor, starts: Tensor) -> Tensor:
    """Return `slots`, (B, G, L, D), with `new`, (B, G, t, D), from `starts`, (B,), on.

    What goes beyond L is cut.
    """
    length, tokens = slots.shape[2], new.shape[2]
    new = new.to(slots.dtype)
    if (starts == starts[0]).all():
        start = int(starts[0])
        both = torch.cat([slots[:, :, :start], new, slots[:, :, start + tokens :]], 2)
        return both[:, :, :length]
    index = (starts[:, None] + torch.arange(tokens)).to(new.device)[:, None, :, None].expand_as(new)
    return F.pad(slots, (0, 0, 0, tokens)).scatter(2, index, new)[:, :, :length]
