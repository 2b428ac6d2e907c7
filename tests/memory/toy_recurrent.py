"""Inputs of the recurrent memory, and its reference on every head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.choices import Update
from infini.memory.recurrent import recurrent_memory
from infini.memory.reference import recurrent_loop

B, H, G, D, V = 3, 4, 2, 8, 5
UPDATES = ["linear", "delta"]


def inputs(
    tokens: int, dtype: torch.dtype = torch.float64, decays: bool = True
) -> tuple[Tensor, ...]:
    """Random q, k, v, beta and, with `decays`, log decays of nearly 1 to nearly 0."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k = (F.normalize(normal(B, heads, tokens, D), dim=-1) for heads in (H, G))
    v, beta = normal(B, G, tokens, V), normal(B, G, tokens).sigmoid()
    decay = -(2 * normal(B, G, tokens) - 2).exp()
    all_of_them = (q, k, v, beta, decay) if decays else (q, k, v, beta)
    return tuple(x.to(dtype).requires_grad_() for x in all_of_them)


def mixed_padding(tokens: int) -> Tensor:
    """Mask without padding, with padding on the left, with padding on the right."""
    mask = torch.ones(B, tokens, dtype=torch.bool)
    mask[1, : tokens // 3] = False
    mask[2, tokens - tokens // 4 :] = False
    return mask


def loop(
    leaves: tuple[Tensor, ...], delay: int, update: Update, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Reads and matrix by the reference on every head of every sample, without padding."""
    q, k, v, beta, *decay = leaves
    decays = decay[0] if decay else torch.zeros_like(beta)
    out, matrix = q.new_zeros(*q.shape[:3], V), q.new_zeros(B, G, D, V)
    for b in range(B):
        real = slice(None) if mask is None else mask[b]
        for h in range(H):
            g = h // (H // G)
            of_group = (x[b, g, real] for x in (k, v, beta, decays))
            out[b, h, real], matrix[b, g] = recurrent_loop(
                q[b, h, real], *of_group, delay=delay, update=update
            )
    return out, matrix


def assert_close_to_loop(
    leaves: tuple[Tensor, ...], exact: tuple[Tensor, ...], delay: int, update: Update
) -> None:
    """Compare reads, matrix and all gradients with the loop, to 1e-5."""
    padding = mixed_padding(exact[0].shape[2]) if delay == 3 else None
    expected = loop(exact, delay, update, padding)
    out, state = recurrent_memory(*leaves, delay=delay, update=update, mask=padding)
    got = out, state.matrix
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    weights = [torch.randn(t.shape, dtype=torch.float64) for t in expected]
    for outputs, own in ((expected, exact), (got, leaves)):
        unused = 0 * sum(leaf.sum() for leaf in own)  # a short text reads and writes nothing
        total = sum((w * t.double()).sum() for w, t in zip(weights, outputs, strict=True))
        (total + unused).backward()
    for one, other in zip(leaves, exact, strict=True):
        scale = other.grad.abs().max().clamp_min(1.0)
        assert (one.grad.double() - other.grad).abs().max() <= 1e-5 * scale
