"""Attention to sinks and window against a loop over tokens, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from infini.memory.local import apply_rotary
from infini.memory.window import ChunkInfo, WindowState, window_attention
from memory.toy_window import ROTARY, B, D, G, H, V, softmax, tokens, turn


def loop(q: Tensor, k: Tensor, v: Tensor, W: int, S: int, sliding_window: int | None) -> Tensor:
    """Output token by token, by distances alone: (B, T, H, V)."""
    out = torch.zeros(*q.shape[:3], V, dtype=q.dtype)
    for t in range(q.shape[2]):
        edge = min(t, W + S - 1)
        distances = {j: (edge if j < S else t) - j for j in range(t + 1) if j < S or t - j < W}
        seen = [
            j for j, back in distances.items() if sliding_window is None or back < sliding_window
        ]
        back = torch.tensor([distances[j] for j in seen])
        keys = turn(k[:, :, seen], -back[None])  # (B, G, seen, D)
        for h in range(H):
            g = h // (H // G)
            weights = torch.einsum("bd,bnd->bn", q[:, h, t], keys[:, g]).softmax(-1)
            out[:, h, t] = torch.einsum("bn,bnv->bv", weights, v[:, g, seen])
    return out.transpose(1, 2)


def streamed(
    qkv: tuple[Tensor, Tensor, Tensor], chunks: list[int], W: int, S: int, **how: Any
) -> Tensor:
    """In chunks, the state passed on."""
    counts, state, out = torch.zeros(B, dtype=torch.int64), None, []
    for q, k, v in zip(*(x.split(chunks, 2) for x in qkv), strict=True):
        T = q.shape[2]
        chunk = ChunkInfo(counts, torch.full((B,), T), T, W, S)
        state = state or WindowState.empty(k, v, chunk, memory=False)
        joined = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        state = chunk.next_state(state, k, v, state.matrix)
        sinks = state.sink_keys, state.sink_values
        out.append(window_attention(q, joined, sinks, chunk, softmax, **how))
        counts = counts + T
    return torch.cat(out, 1)


@pytest.mark.parametrize(("W", "S"), [(5, 2), (1, 0), (1, 3), (4, 0), (70, 4)])
@pytest.mark.parametrize("sliding_window", [None, 3, 6])
def test_window_attention_equals_loop(W: int, S: int, sliding_window: int | None) -> None:
    length = 90 if W == 70 else 14
    qkv = tokens(length)
    expected = loop(*qkv, W, S, sliding_window)
    for chunks in ([length], [3, 1, 1, length - 5], [1] * length):
        out = streamed(qkv, chunks, W, S, rotate=turn, sliding_window=sliding_window)
        torch.testing.assert_close(out, expected)


def test_window_attention_of_many_blocks() -> None:
    qkv = tokens(200)  # blocks of 64 queries
    whole = streamed(qkv, [200], 9, 2, rotate=turn)
    torch.testing.assert_close(streamed(qkv, [50, 30, 120], 9, 2, rotate=turn), whole)
    single = streamed(qkv, [1] * 200, 9, 2, rotate=turn)
    torch.testing.assert_close(single, whole)


def test_turn_equals_apply_rotary() -> None:
    q, positions = tokens(7)[0], torch.arange(7)[None]
    torch.testing.assert_close(
        turn(q, positions), apply_rotary(q, *ROTARY(q, positions)), rtol=1e-5, atol=1e-6
    )


def test_window_state_size_is_constant_and_select_reorders() -> None:
    _, k, v = tokens(30)
    sizes = set()
    for T in (1, 8, 30):
        chunk = ChunkInfo(torch.zeros(B, dtype=torch.int64), torch.tensor([T, T // 2]), T, 5, 2)
        empty = WindowState.empty(k, v, chunk, memory=True)
        state = chunk.next_state(empty, k[:, :, :T], v[:, :, :T], empty.matrix)
        sizes.add(state.nbytes)
    assert sizes == {8 * B * G * (5 + 2 - 1) * (D + V) + 4 * B * G * D * V}
    assert torch.equal(state.keys[0], k[0, :, 26:]), "the last W - 1"
    assert torch.equal(state.keys[1], k[1, :, 11:15])
    assert torch.equal(state.sink_values, v[:, :, :2])
    swapped = state.select(torch.tensor([1, 0, 1]))
    assert torch.equal(swapped.keys[2], state.keys[1])
