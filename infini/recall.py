"""Read, write and gate the memory over whole segments: the inner loop, forward and backward.

Elementwise passes over (T, H, D) tensors cost as much as the matrix products here, so
the work goes through buffers of a block of segments that stay in cache; the feature
maps are computed again in the backward pass rather than kept. Values and z are one
matrix, [M | z | 0…]: one product reads the numerator and the denominator.

Shapes: S segments, B batch, H query heads, G key-value heads (query head h reads the
memory of head h // (H / G)), L tokens a segment, D key width, V value width, C columns.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Update = Literal["linear", "delta"]

EPSILON = 1e-6  # floor of a read's denominator
BLOCK = {"cpu": 2**19}  # elements of a block's largest buffer: of the size of the caches
BLOCK_ELSEWHERE = 2**25  # on an accelerator: few, large kernels
MOST_SEGMENTS = 64  # of a block: its running sum costs their square


def columns(value_width: int) -> int:
    """C: V and one for z, rounded up to 8 (a product with V + 1 columns is a third slower)."""
    return (value_width + 8) // 8 * 8


def feature_map(x: Tensor) -> Tensor:
    """σ(x) = ELU(x) + 1, in float32 at least."""
    return torch.nn.functional.elu(x if x.dtype == torch.float64 else x.float()) + 1


def recall(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: int,
    memory: Tensor,
    complete: Tensor,
    update: Update,
    local: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Every segment reads the memory as the segments before it left it, then is written to it.

    arXiv 2404.07143, equations 3-6. q: (B, H, S·Lq, D) and k: (B, G, S·Lk, D) before σ,
    v: (B, G, S·Lk, V); memory: (B, G, D, C), [M | z | 0]; complete: (B,) int64 on the CPU,
    how many of a sample's segments are in the memory that is returned.

    Returns the reads, (B, H, S·Lq, V), zero while the memory is empty, and the memory. With
    local, shaped like the reads, and gate, (H,): g · read + (1 - g) · local, where nothing has
    been written yet local alone.
    """
    with torch.autocast(q.device.type, enabled=False):
        out: tuple[Tensor, Tensor] = _Recall.apply(
            q, k, v, segments, memory, complete, update, local, gate
        )
    return out


def _by_segment(x: Tensor, segments: int) -> Tensor:
    """(B, H, S·L, D) → (S, B, H, L, D), a view."""
    return x.unflatten(2, (segments, -1)).permute(2, 0, 1, 3, 4)


class _Buffers:
    """Scratch memory of one block of segments; σ and the products are written into it."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, memory: Tensor):
        _, batch, heads, queries, width = q.shape
        groups, keys, values = k.shape[2], k.shape[3], v.shape[4]
        self.values = values
        largest = max(batch * heads * queries, batch * groups * keys) * max(width, values)
        room = BLOCK.get(q.device.type, BLOCK_ELSEWHERE) // max(largest, 1)
        self.step = max(1, min(room, MOST_SEGMENTS, len(q)))
        shape = (self.step, batch, groups)
        rows = heads // groups * queries
        self.queries = memory.new_empty(*shape, rows, width)
        self.keys = memory.new_empty(*shape, keys, width)
        self.extended = memory.new_zeros(*shape, keys, memory.shape[-1])  # [V | 1 | 0]
        self.extended[..., values] = 1
        self.numerators = memory.new_empty(*shape, rows, memory.shape[-1])
        self.scratch = memory.new_empty(*shape, max(rows, keys), width)

    def blocks(self, segments: int) -> list[slice]:
        starts = range(0, segments, self.step)
        return [slice(start, min(start + self.step, segments)) for start in starts]

    def map_queries(self, q: Tensor) -> Tensor:
        """σ(q), the heads that share a memory side by side: (n, B, G, H/G·Lq, D)."""
        buffer = self.queries[: len(q)]
        _sigma_into(buffer.view(q.shape), q, self.scratch)
        return buffer

    def map_keys(self, k: Tensor) -> Tensor:
        """σ(k): (n, B, G, Lk, D)."""
        buffer = self.keys[: len(k)]
        _sigma_into(buffer, k, self.scratch)
        return buffer

    def extend(self, v: Tensor) -> Tensor:
        """[V | 1 | 0]: (n, B, G, Lk, C)."""
        buffer = self.extended[: len(v)]
        buffer[..., : self.values] = v
        return buffer

    def read(self, queries: Tensor, memories: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Numerators, (n, B, H, Lq, V), and denominators, (n, B, H, Lq, 1), views of a buffer."""
        buffer = self.numerators[: len(queries)]
        torch.matmul(queries, memories, out=buffer)
        both = buffer.view(*shape[:4], -1)  # (n, B, H, Lq, C)
        return both[..., : self.values], both[..., self.values : self.values + 1]


def _sigma_into(out: Tensor, x: Tensor, scratch: Tensor) -> None:
    """σ(x) = max(x + 1, min(eˣ, 1)): half the time of ELU."""
    exponential = scratch.flatten()[: x.numel()].view(x.shape)
    out.copy_(x)
    torch.exp(out, out=exponential).clamp_(max=1)
    torch.maximum(out.add_(1), exponential, out=out)


def _slope(mapped: Tensor) -> Tensor:
    """σ′ = min(σ, 1), in place of σ."""
    return mapped.clamp_(max=1)


def _written(memories: Tensor, values: int) -> Tensor:
    """Whether anything had been written: (n, B, 1, 1, 1), as 0 or 1."""
    return (memories[..., values] > 0).any(-1).any(-1)[:, :, None, None, None].to(memories.dtype)


class _Recall(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: int,
        memory: Tensor,
        complete: Tensor,
        update: Update,
        local: Tensor | None,
        gate: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.update, ctx.segments = update, segments
        inputs = q, k, v
        batch, heads, tokens, _ = q.shape
        whole = (
            v.new_empty(batch, heads, tokens, v.shape[-1])
            if local is None
            else (torch.empty_like(local))
        )
        q, k, v, out = (_by_segment(x, segments) for x in (q, k, v, whole))
        here = None if local is None else _by_segment(local, segments)
        buffers = _Buffers(q, k, v, memory)
        # The memory before every segment and after the last: (S + 1, B, G, D, C)
        memories = memory.new_empty(segments + 1, *memory.shape)
        memories[0] = memory
        for block in buffers.blocks(segments):
            keys = buffers.map_keys(k[block])
            writes = keys.mT @ buffers.extend(v[block])
            _advance(memories[block.start : block.stop + 1], keys, writes, update, buffers.values)
            queries = buffers.map_queries(q[block])
            before = memories[block]
            reads, known = buffers.read(queries, before, q[block].shape)
            reads.div_(known.clamp_min(EPSILON))
            if here is None or gate is None:
                out[block] = reads
            else:
                share = gate.to(memory.dtype)[:, None, None] * _written(before, buffers.values)
                share, reads = share.to(here.dtype), reads.to(here.dtype)
                torch.lerp(here[block], reads, share, out=out[block])
        ctx.save_for_backward(*inputs, memories, complete, local, gate)
        last = complete.to(memory.device)
        return whole, memories[last, torch.arange(batch, device=memory.device)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_memory: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(d_out.device.type, enabled=False):
            return _backward(ctx, d_out, d_memory)


def _backward(ctx: Any, d_out: Tensor, d_memory: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, memories, complete, local, gate = ctx.saved_tensors
    segments = ctx.segments
    # Whole tensors are returned, not views: autograd adds other gradients to them in place.
    gradients = [torch.empty_like(x) for x in inputs]
    d_local = None if local is None else torch.empty_like(local)
    q, k, v, d_out = (_by_segment(x, segments) for x in (*inputs, d_out))
    d_q, d_k, d_v = (_by_segment(x, segments) for x in gradients)
    buffers = _Buffers(q, k, v, memories[0])
    values, dtype = buffers.values, memories.dtype
    d_gate = None if gate is None else torch.zeros_like(gate, dtype=dtype)
    # What is asked of the returned memory enters after each sample's last complete segment.
    ends: dict[int, list[int]] = {}
    for sample, end in enumerate(complete.tolist()):
        ends.setdefault(end, []).append(sample)
    carry = torch.zeros_like(memories[0])  # ∂ of the memory after the block
    for sample in ends.get(segments, []):
        carry[sample] = d_memory[sample]

    for block in reversed(buffers.blocks(segments)):
        before, shape = memories[block], q[block].shape
        d_here = d_out[block].to(dtype)
        queries = buffers.map_queries(q[block])
        reads, known = buffers.read(queries, before, shape)
        scale = 1 / known.clamp_min(EPSILON)  # (n, B, H, Lq, 1)
        reads.mul_(scale)
        along = torch.linalg.vecdot(d_here, reads)[..., None]  # (n, B, H, Lq, 1)
        d_known = along * scale.neg() * (known > EPSILON)
        if d_local is not None and d_gate is not None:
            written = _written(before, values)
            share = gate.to(dtype)[:, None, None] * written
            here = _by_segment(local, segments)[block].to(dtype)
            along_local = torch.linalg.vecdot(d_here, here)[..., None]
            d_gate += ((along - along_local) * written).sum((0, 1, 3, 4))
            torch.mul(d_here, 1 - share, out=_by_segment(d_local, segments)[block])
            scale, d_known = scale * share, d_known * share
        torch.mul(d_here, scale, out=reads)
        known.copy_(d_known)
        d_numerators = buffers.numerators[: len(before)]  # [∂ numerator | ∂ denominator | 0]
        d_numerators[..., values + 1 :] = 0
        d_before = queries.mT @ d_numerators
        for end in range(block.start, block.stop):
            for sample in ends.get(end, []):
                d_before[end - block.start, sample] += d_memory[sample]
        d_queries = buffers.scratch[: len(before), :, :, : queries.shape[3]]
        torch.matmul(d_numerators, before.mT, out=d_queries)
        torch.mul(d_queries.view(shape), _slope(queries).view(shape), out=d_q[block])

        keys = buffers.map_keys(k[block])
        extended = buffers.extend(v[block])
        d_writes, d_erased = _retreat(before, keys, d_before, carry, ctx.update, values)
        d_v[block] = keys @ d_writes[..., :values]
        d_keys = extended @ d_writes.mT
        if d_erased is not None:
            d_keys += d_erased
        torch.mul(d_keys, _slope(keys), out=d_k[block])
    if d_gate is not None:
        d_gate = d_gate.to(gate.dtype)
    return *gradients, None, carry, None, None, d_local, d_gate


def _erasures(keys: Tensor, normalizers: Tensor) -> tuple[Tensor, Tensor]:
    """The delta rule's A = σ(K)ᵀ diag(w) σ(K), (n, B, G, D, D), and w = 1/σ(K)z, (n, B, G, Lk, 1).

    w is zero while the memory is empty: nothing to erase.
    """
    known = keys @ normalizers[..., None]
    weights = torch.where(known > 0, 1 / known.clamp_min(EPSILON), 0)
    return keys.mT @ (keys * weights), weights


def _advance(memories: Tensor, keys: Tensor, writes: Tensor, update: Update, values: int) -> None:
    """Fill in the memory after each of n segments; memories: (n + 1, B, G, D, C), its first given.

    Linear: M_s = M_{s-1} + W_s. Delta: M_s = (I - A_s) M_{s-1} + W_s, the z column as linear.
    """
    triangle = writes.new_ones(len(writes), len(writes)).tril()
    if update == "linear":
        sums = triangle @ writes.flatten(1)  # (n, B·G·D·C)
        torch.add(sums.view(writes.shape), memories[0], out=memories[1:])
        return
    sums = triangle @ writes[..., values].flatten(1)  # z alone
    normalizers = memories[:1, ..., values] + sums.view(writes.shape[:-1])  # (n, B, G, D)
    erasures, _ = _erasures(keys, torch.cat([memories[:1, ..., values], normalizers[:-1]]))
    for i, (erasure, write) in enumerate(zip(erasures, writes, strict=True)):
        torch.add(memories[i], write, out=memories[i + 1])
        memories[i + 1] -= erasure @ memories[i]
        memories[i + 1, ..., values] = normalizers[i]


def _retreat(
    before: Tensor, keys: Tensor, d_before: Tensor, carry: Tensor, update: Update, values: int
) -> tuple[Tensor, Tensor | None]:
    """Gradients of n segments' writes, (n, B, G, D, C), and of σ(K) by the erasures.

    before: the memories before the segments; d_before: what their reads ask of them; carry: ∂ of
    the memory after the last, turned in place into ∂ of the memory before the first.
    """
    if update == "linear":
        triangle = d_before.new_ones(len(before), len(before)).triu(1)
        d_writes = (triangle @ d_before.flatten(1)).view(d_before.shape) + carry
        torch.add(d_writes[0], d_before[0], out=carry)
        return d_writes, None
    erasures, weights = _erasures(keys, before[..., values])
    d_writes = torch.empty_like(d_before)
    for i in reversed(range(len(before))):
        d_writes[i] = carry
        erased = erasures[i] @ carry  # A is symmetric
        erased[..., values:] = 0
        carry += d_before[i]
        carry -= erased
    matrices = before[..., :values]
    d_erasures = d_writes[..., :values] @ matrices.mT  # of -A
    both = keys @ (d_erasures + d_erasures.mT).neg_()  # (n, B, G, Lk, D)
    # w = 1/σ(K)z, and A is linear in w: ∂w = ½ row sums of σ(K) · `both`.
    d_known = torch.linalg.vecdot(both, keys)[..., None] * weights.square().mul_(-0.5)
    d_keys = both.mul_(weights).addcmul_(d_known, before[..., None, :, values])
    # z before a segment is the sum of all earlier writes: a running sum from the end.
    d_normalizers = (keys.mT @ d_known)[..., 0]  # (n, B, G, D)
    triangle = keys.new_ones(len(before), len(before)).triu(1)
    d_writes[..., values] += (triangle @ d_normalizers.flatten(1)).view(d_normalizers.shape)
    carry[..., values] += d_normalizers.sum(0)
    return d_writes, d_keys
