"""Writes of a block of segments, by either rule, and the backward pass.

arXiv 2404.07143, equations 4 (linear) and 5 (delta), for n consecutive segments. With the write
W_s = σ(K)ᵀ[V | 1 | 0] of segment s, the memory [M | z | 0] becomes

    linear: M_s = M_{s-1} + W_s
    delta:  M_s = (I - A_s) M_{s-1} + W_s,  A_s = σ(K)ᵀ diag(1 / σ(K)z_{s-1}) σ(K)

and z, the column at V, the sum of all earlier writes by either.

Shapes: n segments, B batch, G key-value heads, Lk keys a segment, D key width, V value width,
C columns of the memory.
"""

import torch
from torch import Tensor

from infini.choices import Update
from infini.memory.features import EPSILON


def write_block(
    memories: Tensor, keys: Tensor, writes: Tensor, update: Update, value_width: int
) -> None:
    """Write n segments to the memory, in order.

    Args:
        memories: Memory before the first segment, then that after each, which is filled in:
            (n + 1, B, G, D, C).
        keys: σ(K), (n, B, G, Lk, D).
        writes: W, (n, B, G, D, C).
        update: Write rule.
        value_width: V.
    """
    if update == "linear":
        torch.add(_running_sum(writes), memories[0], out=memories[1:])
        return
    start = memories[:1, ..., value_width]  # z before the first: (1, B, G, D)
    normalizers = start + _running_sum(writes[..., value_width])  # z after each: (n, B, G, D)
    erasures, _ = _erasures(keys, torch.cat([start, normalizers[:-1]]))
    for i, (erasure, write) in enumerate(zip(erasures, writes, strict=True)):
        torch.add(memories[i], write, out=memories[i + 1])
        memories[i + 1] -= erasure @ memories[i]
        memories[i + 1, ..., value_width] = normalizers[i]


def write_block_backward(
    memories: Tensor,
    keys: Tensor,
    d_memories: Tensor,
    d_current: Tensor,
    update: Update,
    value_width: int,
) -> tuple[Tensor, Tensor | None]:
    """Compute the gradients of `write_block`.

    Args:
        memories: Memories before the segments, (n, B, G, D, C).
        keys: σ(K), (n, B, G, Lk, D).
        d_memories: Gradients of these memories by the reads.
        d_current: Gradient of the memory after the last segment, (B, G, D, C); in place it becomes
            that of the memory before the first.
        update: Write rule.
        value_width: V.

    Returns:
        The gradients of the writes, (n, B, G, D, C), and of σ(K) by what the delta rule erases,
        (n, B, G, Lk, D), or None.
    """
    if update == "delta":
        return _delta_backward(memories, keys, d_memories, d_current, value_width)
    d_writes = _later_sum(d_memories) + d_current
    torch.add(d_writes[0], d_memories[0], out=d_current)
    return d_writes, None


def _delta_backward(
    memories: Tensor, keys: Tensor, d_memories: Tensor, d_current: Tensor, value_width: int
) -> tuple[Tensor, Tensor]:
    """`write_block_backward` by the delta rule."""
    erasures, weights = _erasures(keys, memories[..., value_width])
    d_writes = torch.empty_like(d_memories)
    for i in reversed(range(len(memories))):
        d_writes[i] = d_current
        erased = erasures[i] @ d_current  # A is symmetric
        erased[..., value_width:] = 0
        d_current += d_memories[i]
        d_current -= erased
    matrices = memories[..., :value_width]
    d_erasures = d_writes[..., :value_width] @ matrices.mT  # of -A: (n, B, G, D, D)
    products = keys @ (d_erasures + d_erasures.mT).neg_()  # (n, B, G, Lk, D)
    # w = 1/σ(K)z, and A is linear in w: ∂w = ½ row sums of σ(K) · `products`.
    d_denominators = torch.linalg.vecdot(products, keys)[..., None] * weights.square().mul_(-0.5)
    d_keys = products.mul_(weights).addcmul_(d_denominators, memories[..., None, :, value_width])
    # z before a segment is the sum of all earlier writes: each gets the later ones' gradients.
    d_normalizers = (keys.mT @ d_denominators)[..., 0]  # (n, B, G, D)
    d_writes[..., value_width] += _later_sum(d_normalizers)
    d_current[..., value_width] += d_normalizers.sum(0)
    return d_writes, d_keys


def _erasures(keys: Tensor, normalizers: Tensor) -> tuple[Tensor, Tensor]:
    """Return A = σ(K)ᵀ diag(w) σ(K), (n, B, G, D, D), and w = 1/σ(K)z, (n, B, G, Lk, 1).

    keys: σ(K); normalizers: z before each segment, (n, B, G, D). w is zero while the memory is
    empty: nothing to erase.
    """
    denominators = keys @ normalizers[..., None]
    weights = torch.where(denominators > 0, 1 / denominators.clamp_min(EPSILON), 0)
    return keys.mT @ (keys * weights), weights


def _running_sum(x: Tensor) -> Tensor:
    """Return Σ of x[j] over j ≤ i, for every i: (n, …)."""
    triangle = x.new_ones(len(x), len(x)).tril()
    return (triangle @ x.flatten(1)).view(x.shape)


def _later_sum(x: Tensor) -> Tensor:
    """Return Σ of x[j] over j > i, for every i: (n, …)."""
    triangle = x.new_ones(len(x), len(x)).triu(1)
    return (triangle @ x.flatten(1)).view(x.shape)
