"""InfiniAttention against a float64 loop over tokens; causality; chunks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infini.attention import InfiniAttention, alibi_slopes
from infini.memory import compressive_memory

HIDDEN, HEADS, L, T = 12, 3, 8, 29


def attention(local: str, position: str, update: str = "delta") -> InfiniAttention:
    torch.manual_seed(0)
    module = InfiniAttention(HIDDEN, HEADS, L, update, local, position).double()
    torch.nn.init.normal_(module.beta)
    return module


def naive(module: InfiniAttention, x: Tensor) -> Tensor:
    """Equations 3-6, one token at a time."""
    q, k, v = (
        proj(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for proj in (module.q_proj, module.k_proj, module.v_proj)
    )
    reads, _ = compressive_memory(q, k, v, segment_length=L, update=module.update)
    out = torch.zeros_like(q)
    for h in range(HEADS):
        slope = alibi_slopes(HEADS)[h].item() if module.position == "alibi" else 0.0
        gate = torch.sigmoid(module.beta[h])
        for t in range(x.shape[1]):
            start = t // L * L
            age = torch.arange(t - start, -1, -1)
            keys, values = k[:, h, start : t + 1], v[:, h, start : t + 1]
            if module.local == "softmax":
                scores = (keys @ q[:, h, t, :, None])[..., 0] / math.sqrt(q.shape[-1])
                weights = torch.softmax(scores - slope * age, -1)
            else:
                weights = ((F.elu(keys) + 1) @ (F.elu(q[:, h, t]) + 1)[..., None])[..., 0]
                weights = weights * torch.exp(-slope * age)
                weights = weights / weights.sum(-1, keepdim=True)
            here = (weights[..., None] * values).sum(1)
            out[:, h, t] = here if start == 0 else gate * reads[:, h, t] + (1 - gate) * here
    return module.o_proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("local", ["softmax", "linear"])
@pytest.mark.parametrize("position", ["none", "alibi"])
def test_equals_the_loop(local: str, position: str) -> None:
    module, x = attention(local, position), torch.randn(2, T, HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(module(x)[0], naive(module, x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("local", ["softmax", "linear"])
@pytest.mark.parametrize("update", ["linear", "delta"])
def test_chunks_and_causality(local: str, update: str) -> None:
    module = attention(local, "alibi", update)
    x = torch.randn(2, T, HIDDEN, dtype=torch.float64)
    whole, _ = module(x)
    state, parts = None, []
    for chunk in x.split([5, 11, 13], 1):
        out, state = module(chunk, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole)

    at = 13
    perturbed = x.clone()
    perturbed[:, at] += 1
    moved = (module(perturbed)[0] - whole).abs().sum((0, 2))
    assert not moved[:at].any()
    assert moved[at] > 0
    assert moved[2 * L :].min() > 0  # through the memory


@pytest.mark.parametrize("local", ["softmax", "linear"])
def test_padding_changes_nothing(local: str) -> None:
    module, x = attention(local, "none"), torch.randn(1, 3 * L, HIDDEN, dtype=torch.float64)
    mask = torch.ones(1, 3 * L, dtype=torch.bool)
    mask[:, 2 * L + 3 :] = False
    noisy = torch.where(mask[..., None], x, 1e3)
    real = mask[0]
    expected, _ = module(x[:, real])
    got, state = module(noisy, mask=mask)
    torch.testing.assert_close(got[:, real], expected)
    torch.testing.assert_close(state.normalizer, module(x, mask=mask)[1].normalizer)


def test_empty_memory_leaves_the_local_output_undiluted() -> None:
    module, x = attention("softmax", "none"), torch.randn(1, L, HIDDEN, dtype=torch.float64)
    before, _ = module(x)
    module.beta.data.fill_(4.0)
    assert torch.equal(module(x)[0], before)
