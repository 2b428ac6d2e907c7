"""Associative memory against a loop over tokens, in float64."""

import pytest
import torch
from torch import Tensor

from infini.choices import WindowUpdate
from infini.memory.associative import AssociativeMemory

B, H, G, T, D, V = 2, 4, 2, 9, 6, 5


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def loop(memory: AssociativeMemory, update: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Output token by token, by the equations: (B, H, T, V)."""
    p = {name: x.detach().double() for name, x in memory.named_parameters()}

    def sigmoid(name: str, x: Tensor, head: int) -> Tensor:
        weight, bias = p[f"{name}.weight"][head], p[f"{name}.bias"][head]
        return torch.sigmoid(unit(x) @ weight * D**0.5 + bias)

    out = torch.zeros(B, H, T, V, dtype=torch.float64)
    for b in range(B):
        for g in range(G):
            M = torch.zeros(D, V, dtype=torch.float64)
            for t in range(T):
                for h in range(g * H // G, (g + 1) * H // G):
                    query = unit(q[b, h, t] @ p["q_map"][h])
                    gate = sigmoid("gate", q[b, h, t], h)
                    out[b, h, t] = gate * (query @ M @ p["out_map"][h])
                key = unit(k[b, g, t] @ p["k_map"][g])
                if update == "gated_delta":
                    M = sigmoid("decay", k[b, g, t], g) * M
                error = v[b, g, t] if update == "linear" else v[b, g, t] - key @ M
                M = M + sigmoid("beta", k[b, g, t], g) * torch.outer(key, error)
    return out


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, H, T, D), torch.randn(B, G, T, D), torch.randn(B, G, T, V)


@pytest.mark.parametrize("update", ["linear", "delta", "gated_delta"])
def test_associative_memory_equals_loop(
    update: WindowUpdate, qkv: tuple[Tensor, Tensor, Tensor]
) -> None:
    memory = AssociativeMemory(H, G, (D, V), update)
    empty = torch.zeros(B, G, D, V)
    assert not memory(*qkv, empty)[0].any(), "untrained, the output is zero"
    for parameter in memory.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.5)
    out, after = memory(*qkv, empty)
    expected = loop(memory, update, *(x.double() for x in qkv))
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    first, matrix = memory(*(x[:, :, :4] for x in qkv), empty)
    rest, again = memory(*(x[:, :, 4:] for x in qkv), matrix)
    torch.testing.assert_close(torch.cat([first, rest], 2), out)
    torch.testing.assert_close(again, after)


def test_write_mask_leaves_the_memory_unchanged(
    qkv: tuple[Tensor, Tensor, Tensor],
) -> None:
    memory = AssociativeMemory(H, G, (D, V), "gated_delta")
    matrix, mask = torch.randn(B, G, D, V), torch.zeros(B, T, dtype=torch.bool)
    assert torch.equal(memory(*qkv, matrix, mask)[1], matrix)
    mask[:, :4] = True
    _, after = memory(*(x[:, :, :4] for x in qkv), matrix)
    torch.testing.assert_close(memory(*qkv, matrix, mask)[1], after)
