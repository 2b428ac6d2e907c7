"""Scan over the chunks of a block: the forward pass in order of the tokens, and the backward pass.

Equations and shapes are those of `chunks`. Only the memory is passed on from chunk to chunk one
by one; all else is batched over the block. The backward pass computes memories and scores again
from the new values and (I + S)⁻¹, which are saved.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from infini.memory.chunks import Chunks


class ScanResult(NamedTuple):
    """Results of a block's forward pass."""

    reads: Tensor  # (N, r·c, V), valid until the next block
    v_new: Tensor  # what is written: U - W M₀, or V by the linear rule: (N, c, V)
    inverse: Tensor | None  # (I + S)⁻¹: (N, c, c); None: linear rule
    memory: Tensor  # after the block: (B·G, D, V)


def scan_forward(chunks: Chunks, v: Tensor, memory: Tensor) -> ScanResult:
    """Read and write a block of chunks.

    Args:
        chunks: Queries, keys and decays of the block.
        v: Values, (n, B, G, c, V), of any strides and type.
        memory: Memory before the block, (B·G, D, V).
    """
    scratch, shape = chunks.scratch, (*chunks.write_keys.shape[:2], v.shape[-1])
    v_new = memory.new_empty(shape)
    inverse = w = None
    if chunks.read_keys is None:
        v_new.view(v.shape).copy_(v)
    else:
        values = scratch("values", *shape)
        values.view(v.shape).copy_(v)
        system = chunks.scores(chunks.read_keys, chunks.write_keys)
        identity = torch.eye(shape[1], dtype=memory.dtype, device=memory.device)
        inverse = torch.linalg.solve_triangular(system, identity, upper=False, unitriangular=True)
        torch.bmm(inverse, values, out=v_new)
        read_keys = chunks.decay_since_start(chunks.read_keys, "read keys since start")
        w = torch.bmm(inverse, read_keys, out=scratch("w", *read_keys.shape))
    memories = _scan(chunks, memory, v_new, w)
    reads = scratch("reads", *chunks.queries.shape[:2], shape[2])
    torch.bmm(chunks.queries, memories[:-1].flatten(0, 1), out=reads)
    if chunks.decay.since_start is not None:
        chunks.view_by_token(reads).mul_(chunks.decay.since_start)
    reads.baddbmm_(chunks.scores(chunks.queries, chunks.write_keys), v_new)
    return ScanResult(reads, v_new, inverse, memories[-1].clone())


def _scan(chunks: Chunks, memory: Tensor, v_new: Tensor, w: Tensor | None = None) -> Tensor:
    """Compute the memory before every chunk and after the last, (n + 1, B·G, D, V).

    memory: before the first. w: W = (I + S)⁻¹ exp(h) X, (N, c, D), with which v_new, (N, c, V),
    holds U and becomes U - W M₀ in place; None: v_new is final.
    """
    memories = chunks.scratch("memories", chunks.count + 1, *memory.shape)
    memories[0] = memory
    before = memories.unbind(0)
    keys = chunks.unbind(chunks.decay_to_end(chunks.write_keys, "write keys to end").mT)
    values = chunks.unbind(v_new)
    ws = None if w is None else chunks.unbind(w)
    for i in range(chunks.count):
        if ws is not None:
            values[i].baddbmm_(ws[i], before[i], alpha=-1)
        if chunks.decay.whole is None:
            torch.baddbmm(before[i], keys[i], values[i], out=before[i + 1])
        else:
            torch.mul(before[i], chunks.decay.whole[i], out=before[i + 1])
            before[i + 1].baddbmm_(keys[i], values[i])
    return memories


class ScanGradients(NamedTuple):
    """Gradients of a block's inputs, valid until the next block."""

    queries: Tensor  # (N, r·c, D)
    read_keys: Tensor | None  # (N, c, D)
    write_keys: Tensor  # (N, c, D)
    v: Tensor  # (N, c, V)
    decay: Tensor | None  # of the log decays: (N, c); None: not needed
    memory: Tensor  # of the memory before the block: (B·G, D, V)


class Saved(NamedTuple):
    """Results of a block's forward pass that its backward pass needs."""

    memory: Tensor  # before the block: (B·G, D, V)
    v_new: Tensor  # as in ScanResult
    inverse: Tensor | None


def scan_backward(
    chunks: Chunks, saved: Saved, d_reads: Tensor, d_memory: Tensor, needs_decay: bool
) -> ScanGradients:
    """Compute the gradients of a block's inputs.

    Args:
        chunks: As in the forward pass.
        saved: Results of the forward pass.
        d_reads: Gradient of the reads, (N, r·c, V).
        d_memory: Gradient of the memory after the block, (B·G, D, V).
        needs_decay: Whether the decays need a gradient.
    """
    scratch, v_new = chunks.scratch, saved.v_new
    memories = _scan(chunks, saved.memory, v_new)
    d_memories = scratch("∂ memories", *memories.shape)
    d_memories[-1] = d_memory
    decayed = chunks.decay_since_start(d_reads, "∂ reads since start")
    torch.bmm(chunks.queries.mT, decayed, out=d_memories[:-1].flatten(0, 1))
    d_v_new = scratch("∂ v_new", *v_new.shape)
    torch.bmm(chunks.scores(chunks.queries, chunks.write_keys).mT, d_reads, out=d_v_new)
    d_v = _scan_backward(chunks, saved.inverse, d_v_new, d_memories)

    before, d_after = memories[:-1].flatten(0, 1), d_memories[1:].flatten(0, 1)
    d_write_keys = scratch("∂ write keys", *chunks.write_keys.shape)
    torch.bmm(chunks.decay_to_end(v_new, "v_new to end"), d_after.mT, out=d_write_keys)

    def d_readers(name: str, x: Tensor, d_x_reads: Tensor, decayed: Tensor) -> Tensor:
        """Return ∂ of readers x, given ∂ of their reads; add their part to ∂ of the write keys."""
        d_scores = chunks.scores(d_x_reads, v_new)
        d_write_keys.baddbmm_(d_scores.mT, x)
        d_x = torch.bmm(decayed, before.mT, out=scratch(name, *x.shape))
        return d_x.baddbmm_(d_scores, chunks.write_keys)

    d_queries = d_readers("∂ queries", chunks.queries, d_reads, decayed)
    d_read_keys = None
    if chunks.read_keys is not None:
        d_known = torch.neg(d_v, out=scratch("∂ known", *d_v.shape))  # subtracted from the values
        decayed = chunks.decay_since_start(d_known, "∂ known since start")
        d_read_keys = d_readers("∂ read keys", chunks.read_keys, d_known, decayed)
    d_decay = None
    if needs_decay:
        ends = memories[1:], d_memories[1:]
        d_decay = _decay_backward(chunks, d_queries, d_read_keys, d_write_keys, ends)
    return ScanGradients(d_queries, d_read_keys, d_write_keys, d_v, d_decay, d_memories[0].clone())


def _scan_backward(
    chunks: Chunks, inverse: Tensor | None, d_v_new: Tensor, d_memories: Tensor
) -> Tensor:
    """Return ∂V, (N, c, V), and complete ∂ of the memories in place.

    d_v_new: ∂ of the new values by the queries' reads. d_memories, (n + 1, B·G, D, V): the last
    complete, the others by the queries' reads alone; later tokens' parts are added.
    """
    d_v, solved_keys, read_keys = d_v_new, None, None
    write_keys = chunks.decay_to_end(chunks.write_keys, "write keys to end")
    if inverse is not None and chunks.read_keys is not None:
        scratch = chunks.scratch
        d_v = torch.bmm(inverse.mT, d_v_new, out=scratch("∂ values", *d_v_new.shape))
        solved = torch.bmm(inverse.mT, write_keys, out=scratch("w", *write_keys.shape))
        solved_keys = chunks.unbind(solved)
        decayed = chunks.decay_since_start(chunks.read_keys, "read keys since start")
        read_keys = chunks.unbind(decayed.mT)
    d_values, d_before = chunks.unbind(d_v), d_memories.unbind(0)
    for i in reversed(range(chunks.count)):
        if solved_keys is not None and read_keys is not None:
            d_values[i].baddbmm_(solved_keys[i], d_before[i + 1])
            d_before[i].baddbmm_(read_keys[i], d_values[i], alpha=-1)
        if chunks.decay.whole is None:
            d_before[i].add_(d_before[i + 1])
        else:
            d_before[i].addcmul_(d_before[i + 1], chunks.decay.whole[i])
    if solved_keys is not None:
        return d_v
    return d_v.baddbmm_(write_keys, d_memories[1:].flatten(0, 1))


def _decay_backward(
    chunks: Chunks,
    d_queries: Tensor,
    d_read_keys: Tensor | None,
    d_write_keys: Tensor,
    ends: tuple[Tensor, Tensor],
) -> Tensor:
    """Return ∂d, (N, c); ends: the memory after every chunk and its gradient, (n, B·G, D, V).

    A query enters with exp(h), a read key with exp(g), a write key with exp(-g), the memory at the
    end with exp(g) of the last token. So ∂h = Σ q·∂q, ∂g = x·∂x - w·∂w, with x the read keys and w
    the write keys, and a decay is in all later h and in its own and later g.
    """

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return torch.mul(x, y, out=chunks.scratch("dot", *x.shape)).sum(-1)

    by_token = chunks.view_by_token(dot(chunks.queries, d_queries)[..., None])
    d_before = by_token.sum((1, 3))  # ∂h: (N, c)
    d_sums = d_before - dot(chunks.write_keys, d_write_keys)
    if chunks.read_keys is not None and d_read_keys is not None:
        d_sums += dot(chunks.read_keys, d_read_keys)
    d_sums[:, -1] += dot(*ends).sum(-1).flatten()
    return d_sums.flip(1).cumsum(1).flip(1) - d_before
