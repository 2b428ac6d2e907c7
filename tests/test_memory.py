"""The compressive memory against the paper's equations as a float64 loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infini.memory import compressive_memory

B, H, D, V, L = 2, 3, 4, 5, 8


def naive_memory(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, update: str) -> tuple[Tensor, ...]:
    """arXiv 2404.07143, equations 3-5, token by token and segment by segment."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    matrices, normalizers = [], []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            matrix = torch.zeros(q.shape[-1], v.shape[-1], dtype=q.dtype)
            z = torch.zeros(q.shape[-1], dtype=q.dtype)
            for start in range(0, q.shape[2], L):
                end = min(start + L, q.shape[2])
                for t in range(start, end):
                    sq = F.elu(q[b, h, t]) + 1
                    if z.any():
                        out[b, h, t] = sq @ matrix / (sq @ z)
                if end - start < L:
                    break  # incomplete: not written yet
                new_matrix, new_z = matrix.clone(), z.clone()
                for t in range(start, end):
                    if not mask[b, t]:
                        continue
                    sk = F.elu(k[b, h, t]) + 1
                    value = v[b, h, t]
                    if update == "delta" and z.any():
                        value = value - sk @ matrix / (sk @ z)
                    new_matrix, new_z = new_matrix + torch.outer(sk, value), new_z + sk
                matrix, z = new_matrix, new_z
            matrices.append(matrix)
            normalizers.append(z)
    shape = q.shape[:2]
    return (
        out,
        torch.stack(matrices).unflatten(0, shape),
        torch.stack(normalizers).unflatten(0, shape),
    )


def inputs(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (
        torch.randn(B, H, tokens, width, generator=generator, dtype=torch.float64).to(dtype)
        for width in (D, D, V)
    )
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


@pytest.mark.parametrize("update", ["linear", "delta"])
@pytest.mark.parametrize("tokens", [3, 8, 29, 40])
@pytest.mark.parametrize("padded", [False, True])
def test_values_state_and_gradients_equal_the_equations(
    update: str, tokens: int, padded: bool
) -> None:
    mask = torch.ones(B, tokens, dtype=torch.bool)
    if padded:
        mask[1, tokens - tokens // 3 :] = False
    results = []
    for dtype, function in ((torch.float64, naive_memory), (torch.float32, None)):
        q, k, v = inputs(tokens, dtype)
        if function:
            out, matrix, z = function(q, k, v, mask, update)
        else:
            out, state = compressive_memory(q, k, v, segment_length=L, update=update, mask=mask)
            matrix, z = state.matrix, state.normalizer
        weight = torch.linspace(-1, 1, out.numel(), dtype=dtype).view(out.shape)
        loss = (out * weight).sum() + matrix.square().sum() + z.sum()
        (loss + 0 * (q.sum() + k.sum() + v.sum())).backward()  # short inputs leave no graph
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in (q, k, v)]
        results.append([out, matrix, z, *grads])
    for expected, got in zip(*results, strict=True):
        assert (expected - got).abs().max() <= 1e-5 * expected.abs().max().clamp_min(1)


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_gradcheck(update: str) -> None:
    q, k, v = (x[:1, :1, :11, :3].detach().requires_grad_() for x in inputs(11))
    assert torch.autograd.gradcheck(
        lambda *x: compressive_memory(*x, segment_length=4, update=update)[0], (q, k, v)
    )


@pytest.mark.parametrize("update", ["linear", "delta"])
@pytest.mark.parametrize("chunks", [(8, 21), (3, 10, 16), (1,) * 29])
def test_any_chunks_give_what_the_whole_gives(update: str, chunks: tuple[int, ...]) -> None:
    q, k, v = inputs(29)
    whole, end = compressive_memory(q, k, v, segment_length=L, update=update)
    state, parts, start = None, [], 0
    for size in chunks:
        part = (x[:, :, start : start + size] for x in (q, k, v))
        out, state = compressive_memory(*part, segment_length=L, update=update, state=state)
        parts.append(out)
        start += size
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    for ours, theirs in zip(state, end, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("update", ["linear", "delta"])
def test_gradient_crosses_segments_and_never_runs_backwards(update: str) -> None:
    q, k, v = inputs(4 * L)
    out, _ = compressive_memory(q, k, v, segment_length=L, update=update)
    assert not out[:, :, :L].any()  # the memory is empty
    out[:, :, 2 * L : 3 * L].sum().backward()
    for x in (k, v):
        assert x.grad[:, :, :L].abs().sum() > 0
        assert not x.grad[:, :, 2 * L :].any()
