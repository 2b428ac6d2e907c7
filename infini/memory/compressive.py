"""Compressive memory: Infini-attention's associative matrix, parallel over segments.

arXiv 2404.07143, equations 3-5. A token reads the memory as it stood after the
segment before its own; a segment is written once it is complete.

Shapes: B batch, H query heads, G key-value heads, T tokens, L segment length, S segments,
D key width, V value width, C columns of the memory (see `kernel`).
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
from infini.memory.buffers import columns
from infini.memory.packing import Packing, Part, drive, split, swap_halves
from infini.memory.reads import Mix
from infini.memory.segment_scan import Plan, read_and_write

# Attention within a segment: (N, H, t, D) queries at given slots (N or 1, t) of a segment whose
# keys and values, (N, G, n, ·), start at slot 0; None: slots 0 to t - 1, and t = n.
LocalAttention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Rule:
    """How a memory is written, and what its reads are mixed with: local and gate, or neither."""

    segment_length: int  # L, tokens
    update: Update
    local: LocalAttention | None = None
    gate: Tensor | None = None  # a read's share of the output, the rest is local: (H,)
    use: MemoryMode = "own"  # swapped: the batch's halves read each other's memories

    def mix(self, local: Tensor | None) -> Mix | None:
        """What the reads are mixed with, given the local attention's output."""
        return None if local is None or self.gate is None else Mix(local, self.gate)


class MemoryState(NamedTuple):
    """All that later tokens need: a value, of the same size after any number of tokens."""

    matrix: Tensor
    """M: (B, G, D, V), float32 at least"""
    normalizer: Tensor
    """z: (B, G, D), float32 at least"""
    keys: Tensor
    """Of the segment begun, before σ, zero beyond `pending`: (B, G, L, D)"""
    values: Tensor
    """Of the segment begun, zero beyond `pending`: (B, G, L, V)"""
    pending: Tensor
    """Tokens of the segment begun, less than L: (B,) int64, on the CPU"""

    @classmethod
    def empty(cls, k: Tensor, v: Tensor, segment_length: int) -> "MemoryState":
        """Nothing written; k: (B, G, T, D), v: (B, G, T, V) give sizes, types and device.

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
        """The same state without the graph that led to it."""
        return MemoryState(*(tensor.detach() for tensor in self))

    def select(self, samples: Tensor) -> "MemoryState":
        """The state of these samples, in this order; samples: (n,) int64."""
        return MemoryState(*(t.index_select(0, samples.to(t.device)) for t in self))

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self)


# One part of a text, (q, k, v, its samples' tokens, rule, state) → (out, state)
_Compute = Callable[[Tensor, Tensor, Tensor, Tensor, Rule, MemoryState], tuple[Tensor, MemoryState]]


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

    arXiv 2404.07143, equations 3-5. q: (B, H, T, D) and k: (B, G, T, D) before σ = ELU + 1;
    v: (B, G, T, V); G divides H; any T; segment_length: tokens; update: "linear" or "delta";
    state: after the tokens before, None: there are none; mask: (B, T), False on padding, which is
    skipped: neither read from nor written. Returns (B, H, T, V), of v's type, zeros while the
    memory is empty and on padding, and the state. Feeding a document in any chunks, the state
    passed on, gives what feeding it whole gives. InputError: no such update, shapes that do not
    belong together, a mask of another size, a state of other sizes.
    """
    check_choice("update", update, Update)
    check_integer("segment_length", segment_length, 1)
    _check_shapes(q, k, v)
    packing = Packing.of(q.shape[0], q.shape[2], mask)
    q, k, v = (packing.pack(x, 2) for x in (q, k, v))
    out, state = attend(q, k, v, packing.lengths, Rule(segment_length, update), state)
    return packing.unpack(out, 2).to(v.dtype), state


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    rule: Rule,
    state: MemoryState | None = None,
) -> tuple[Tensor, MemoryState]:
    """Reads of the memory, mixed with local attention where the rule has one.

    Shapes as in `compressive_memory`; lengths: (B,) int64 on the CPU, a sample's real tokens,
    padding behind them. Returns (B, H, T, V), zero on padding, and the state. InputError: the
    state is of segments of another length, of another batch or of other heads.
    """
    current = MemoryState.empty(k, v, rule.segment_length) if state is None else state
    length = current.keys.shape[2]
    if length != rule.segment_length:
        raise InputError(
            f"the state is of segments of {length} tokens, not of {rule.segment_length}"
        )
    wanted = (*k.shape[:2], k.shape[3], v.shape[3])
    if current.matrix.shape != wanted:
        raise InputError(
            "the state is of (batch, heads, key width, value width) "
            f"{tuple(current.matrix.shape)}, not of {wanted}"
        )

    def run(compute: _Compute, part: Part) -> Tensor:
        nonlocal current
        taken = part.take(q, 2), part.take(k, 2), part.take(v, 2)
        out, current = compute(*taken, part.counts, rule, current)
        return out

    out = drive(
        split(current.pending, lengths, rule.segment_length),
        q.shape[2],
        2,
        begun=partial(run, _begun_segment),
        whole=partial(run, _whole_segments),
    )
    return q.new_zeros(*q.shape[:3], v.shape[-1]) if out is None else out, current


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """InputError for queries, keys and values that do not belong together."""
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
            f"q (B, H, T, D), k (B, G, T, D), v (B, G, T, V) are needed, G divides H; got {shapes}"
        )


def _extended(state: MemoryState) -> Tensor:
    """[M | z | 0]: (B, G, D, C)."""
    values = state.matrix.shape[-1]
    both = torch.cat([state.matrix, state.normalizer[..., None]], -1)
    return F.pad(both, (0, columns(values) - values - 1))


def _read_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: MemoryState,
    plan: Plan,
    rule: Rule,
    local: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`read_and_write` by the rule: the output, (B, H, t, V), and the memory, [M | z | 0]."""
    if rule.use == "off" and local is not None:
        return local, _extended(state)
    if rule.use != "swapped":
        return read_and_write(q, k, v, _extended(state), plan, rule.mix(local))
    # The queries and what is local change places, the memories stay where they are written.
    local = None if local is None else swap_halves(local)
    out, memory = read_and_write(swap_halves(q), k, v, _extended(state), plan, rule.mix(local))
    return swap_halves(out), memory


def _whole_segments(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, rule: Rule, state: MemoryState
) -> tuple[Tensor, MemoryState]:
    """Samples of whole segments, nothing pending where there are any: (B, H, S·L, V)."""
    length, values = rule.segment_length, v.shape[-1]
    here = None
    if rule.local is not None:
        # (B, H, S·L, D) → (B·S, H, L, D): views of what a projection returns
        rows = [x.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
        here = rule.local(rows[0], rows[1], rows[2], None).unflatten(0, (len(q), -1))
        here = here.transpose(1, 2).flatten(2, 3)  # (B, S, H, L, V) → (B, H, S·L, V)
    plan = Plan(q.shape[2] // length, counts // length, rule.update)
    out, memory = _read_and_write(q, k, v, state, plan, rule, here)
    return out, state._replace(matrix=memory[..., :values], normalizer=memory[..., values])


def _begun_segment(
    q: Tensor, k: Tensor, v: Tensor, counts: Tensor, rule: Rule, state: MemoryState
) -> tuple[Tensor, MemoryState]:
    """Some more tokens of the segment begun, up to its end at most: (B, H, t, V)."""
    length, values, tokens = rule.segment_length, v.shape[-1], q.shape[2]
    filled = state.pending + counts
    keys, begun = _insert(state.keys, k, state.pending), _insert(state.values, v, state.pending)
    here = None
    if rule.local is not None:
        used = int(filled.max())
        slots = None
        if state.pending.any() or tokens != used:
            slots = (state.pending[:, None] + torch.arange(tokens)).clamp(max=length - 1)  # (B, t)
            slots = slots.to(k.device)
        here = rule.local(q, keys[:, :, :used], begun[:, :, :used], slots)  # (B, H, t, V)
    complete = filled // length  # 0 or 1
    written = length if complete.any() else 0
    plan = Plan(1, complete, rule.update)
    out, memory = _read_and_write(
        q, keys[:, :, :written], begun[:, :, :written], state, plan, rule, here
    )
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
        both = torch.cat([slots[:, :, :start], new, slots[:, :, start + tokens :]], 2)
        return both[:, :, :length]
    index = (at[:, None] + torch.arange(tokens)).to(new.device)[:, None, :, None].expand_as(new)
    return F.pad(slots, (0, 0, 0, tokens)).scatter(2, index, new)[:, :, :length]
