"""The passes over a block of chunks: forward in order of the tokens, and back.

The equations and shapes are those of `chunks`. Only the memory is handed from chunk to chunk one
by one; all else is batched over the block. The backward pass makes the memories and the scores
again from the errors and (I + S)⁻¹, which are kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from infini.memory.chunks import Chunks


class Forward(NamedTuple):
    """What a block gives."""

    reads: Tensor  # (N, r·c, V), until the next block's
    errors: Tensor  # E: (N, c, V)
    inverse: Tensor | None  # (I + S)⁻¹: (N, c, c); None: linear
    memory: Tensor  # after the block: (B·G, D, V)


def forward(chunks: Chunks, v: Tensor, memory: Tensor) -> Forward:
    """v: (n, B, G, c, V), any strides and type; memory: that before the block, (B·G, D, V)."""
    scratch, shape = chunks.scratch, (*chunks.writers.shape[:2], v.shape[-1])
    errors = memory.new_empty(shape)
    inverse = known = None
    if chunks.erasers is None:
        errors.view(v.shape).copy_(v)
    else:
        values = scratch("values", *shape)
        values.view(v.shape).copy_(v)
        system = chunks.scores(chunks.erasers, chunks.writers)
        identity = torch.eye(shape[1], dtype=memory.dtype, device=memory.device)
        inverse = torch.linalg.solve_triangular(system, identity, upper=False, unitriangular=True)
        torch.bmm(inverse, values, out=errors)
        erasers = chunks.since_start(chunks.erasers, "erasers since start")
        known = torch.bmm(inverse, erasers, out=scratch("known", *erasers.shape))
    memories = _hand_on(chunks, memory, errors, known)
    reads = scratch("reads", *chunks.queries.shape[:2], shape[2])
    torch.bmm(chunks.queries, memories[:-1].flatten(0, 1), out=reads)
    if chunks.decay.before is not None:
        chunks.by_token(reads).mul_(chunks.decay.before)
    reads.baddbmm_(chunks.scores(chunks.queries, chunks.writers), errors)
    return Forward(reads, errors, inverse, memories[-1].clone())


def _hand_on(chunks: Chunks, memory: Tensor, errors: Tensor, known: Tensor | None = None) -> Tensor:
    """The memory before every chunk and after the last, (n + 1, B·G, D, V), given the first.

    known: (I + S)⁻¹ exp(h) X, (N, c, D): `errors`, (N, c, V), are (I + S)⁻¹ V, and lose `known` M
    here, in place.
    """
    memories = chunks.scratch("memories", chunks.count + 1, *memory.shape)
    memories[0] = memory
    before = memories.unbind(0)
    last = chunks.in_turn(chunks.to_end(chunks.writers, "writers to end").mT)
    error = chunks.in_turn(errors)
    reader = None if known is None else chunks.in_turn(known)
    for i in range(chunks.count):
        if reader is not None:
            error[i].baddbmm_(reader[i], before[i], alpha=-1)
        if chunks.decay.whole is None:
            torch.baddbmm(before[i], last[i], error[i], out=before[i + 1])
        else:
            torch.mul(before[i], chunks.decay.whole[i], out=before[i + 1])
            before[i + 1].baddbmm_(last[i], error[i])
    return memories


class Backward(NamedTuple):
    """∂ of a block's inputs, until the next block's."""

    queries: Tensor  # (N, r·c, D)
    erasers: Tensor | None  # (N, c, D)
    writers: Tensor  # (N, c, D)
    v: Tensor  # (N, c, V)
    decay: Tensor | None  # of the logarithms: (N, c); None: not asked for
    memory: Tensor  # of that before the block: (B·G, D, V)


class Kept(NamedTuple):
    """What the backward pass needs of a block's forward pass."""

    memory: Tensor  # before the block: (B·G, D, V)
    errors: Tensor  # as in Forward
    inverse: Tensor | None


def backward(
    chunks: Chunks, kept: Kept, d_reads: Tensor, d_after: Tensor, decays: bool
) -> Backward:
    """d_reads: (N, r·c, V); d_after: ∂ of the memory after the block; decays: ∂ of them too."""
    scratch, errors = chunks.scratch, kept.errors
    memories = _hand_on(chunks, kept.memory, errors)
    d_memories = scratch("∂ memories", *memories.shape)
    d_memories[-1] = d_after
    aged = chunks.since_start(d_reads, "∂ reads since start")
    torch.bmm(chunks.queries.mT, aged, out=d_memories[:-1].flatten(0, 1))
    d_errors = scratch("∂ errors", *errors.shape)
    torch.bmm(chunks.scores(chunks.queries, chunks.writers).mT, d_reads, out=d_errors)
    d_v = _hand_back(chunks, kept.inverse, d_errors, d_memories)

    before, after = memories[:-1].flatten(0, 1), d_memories[1:].flatten(0, 1)
    d_writers = scratch("∂ writers", *chunks.writers.shape)
    torch.bmm(chunks.to_end(errors, "errors to end"), after.mT, out=d_writers)

    def readers(name: str, x: Tensor, d_x: Tensor, aged: Tensor) -> Tensor:
        """∂ of readers x whose reads' gradients are d_x; what they ask of the writers is added."""
        d_scores = chunks.scores(d_x, errors)
        d_writers.baddbmm_(d_scores.mT, x)
        d_readers = torch.bmm(aged, before.mT, out=scratch(name, *x.shape))
        return d_readers.baddbmm_(d_scores, chunks.writers)

    d_queries = readers("∂ queries", chunks.queries, d_reads, aged)
    d_erasers = None
    if chunks.erasers is not None:
        erased = torch.neg(d_v, out=scratch("∂ erased", *d_v.shape))  # taken from the values
        aged = chunks.since_start(erased, "∂ erased since start")
        d_erasers = readers("∂ erasers", chunks.erasers, erased, aged)
    ends = (memories[1:], d_memories[1:])
    d_decay = _decay(chunks, d_queries, d_erasers, d_writers, ends) if decays else None
    return Backward(d_queries, d_erasers, d_writers, d_v, d_decay, d_memories[0].clone())


def _hand_back(
    chunks: Chunks, inverse: Tensor | None, d_errors: Tensor, d_memories: Tensor
) -> Tensor:
    """∂V, (N, c, V): ∂E that goes through the system; d_errors: ∂E by the queries' reads.

    d_memories, (n + 1, B·G, D, V): the last whole, the others those by the queries' reads; what
    the later tokens ask is added to them.
    """
    d_v, solved, known = d_errors, None, None
    last = chunks.to_end(chunks.writers, "writers to end")
    if inverse is not None and chunks.erasers is not None:
        scratch = chunks.scratch
        d_v = torch.bmm(inverse.mT, d_errors, out=scratch("∂ values", *d_errors.shape))
        solved = chunks.in_turn(torch.bmm(inverse.mT, last, out=scratch("known", *last.shape)))
        known = chunks.in_turn(chunks.since_start(chunks.erasers, "erasers since start").mT)
    d_value, d_before = chunks.in_turn(d_v), d_memories.unbind(0)
    for i in reversed(range(chunks.count)):
        if solved is not None and known is not None:
            d_value[i].baddbmm_(solved[i], d_before[i + 1])
            d_before[i].baddbmm_(known[i], d_value[i], alpha=-1)
        if chunks.decay.whole is None:
            d_before[i].add_(d_before[i + 1])
        else:
            d_before[i].addcmul_(d_before[i + 1], chunks.decay.whole[i])
    return d_v if solved is not None else d_v.baddbmm_(last, d_memories[1:].flatten(0, 1))


def _decay(
    chunks: Chunks,
    d_queries: Tensor,
    d_erasers: Tensor | None,
    d_writers: Tensor,
    ends: tuple[Tensor, Tensor],
) -> Tensor:
    """∂d, (N, c); ends: the memory after every chunk and its gradient, (n, B·G, D, V).

    A query comes with exp(h), an eraser with exp(g), a writer with exp(-g), the memory at the end
    with exp(g) of the last token. So ∂h = Σ q·∂q, ∂g = x·∂x - w·∂w, and a decay is in all later
    h and in its own and later g.
    """

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return torch.mul(x, y, out=chunks.scratch("dot", *x.shape)).sum(-1)

    d_before = chunks.by_token(dot(chunks.queries, d_queries)[..., None]).sum((1, 3))  # ∂h: (N, c)
    d_sums = d_before - dot(chunks.writers, d_writers)
    if chunks.erasers is not None and d_erasers is not None:
        d_sums += dot(chunks.erasers, d_erasers)
    d_sums[:, -1] += dot(*ends).sum(-1).flatten()
    return d_sums.flip(1).cumsum(1).flip(1) - d_before
