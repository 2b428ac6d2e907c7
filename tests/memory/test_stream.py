"""Streaming memory in chunks: any chunk size, decay and key."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infini.choices import Update
from infini.memory.recurrent import recurrent_memory
from infini.memory.stream import Stream, stream_memory
from memory.toy_recurrent import UPDATES, B, D, G, V, inputs, loop


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("decays", [False, True])
def test_stream_memory_is_the_same_for_any_chunk_size(
    update: Update, decays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves = inputs(150, decays=decays)

    def run() -> tuple[Tensor, ...]:
        out, state = recurrent_memory(*leaves, delay=5, update=update)
        total = out.square().sum() + state.matrix.sum()
        return out, state.matrix, *torch.autograd.grad(total, leaves)

    expected = run()
    for chunk, block in ((1, 1), (7, 1000), (64, 2**20), (1000, 1)):
        monkeypatch.setattr("infini.memory.chunks.CHUNK_SIZE", chunk)
        monkeypatch.setattr("infini.memory.chunks.BUFFER_ELEMENTS", {"cpu": block})
        torch.testing.assert_close(run(), expected)


@pytest.mark.parametrize("decay", [-1e-4, -30.0, -1e4, -torch.inf])
def test_stream_memory_with_weak_and_strong_decays(decay: float) -> None:
    leaves, exact = inputs(70, torch.float32), inputs(70)
    for x in (*leaves, *exact):
        x.requires_grad_(False)
    for decays in (leaves[4], exact[4]):
        decays[:, :, ::9] = decay
        decays.requires_grad_()
    expected, out = loop(exact, 1, "delta")[0], recurrent_memory(*leaves)[0]
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(out.sum(), leaves[4])
    assert gradient.isfinite().all()
    if decay > -torch.inf:
        (expected_gradient,) = torch.autograd.grad(expected.sum(), exact[4])
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-5)


def test_stream_memory_with_one_key_written_repeatedly() -> None:
    # the powers of a Neumann series would grow to 1e18 here
    leaves, exact = inputs(129, torch.float32, False), inputs(129, decays=False)
    for x in (leaves, exact):
        for tensor in x:
            tensor.requires_grad_(False)
        x[1][:] = x[1][:, :, :1]
        x[3][:] = 1
    out, _ = recurrent_memory(*leaves)
    torch.testing.assert_close(out.double(), loop(exact, 1, "delta")[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("update", UPDATES)
def test_stream_memory_behind_a_window_equals_recurrent_memory(update: Update) -> None:
    """Tokens that leave a window of 12, held by the caller, are those of delay 12."""
    window, tokens = 12, 75
    q, *rest = inputs(tokens)
    expected, _ = recurrent_memory(q, *rest, delay=window, update=update)
    matrix = q.new_zeros(B, G, D, V)
    held = Stream(*(x[:, :, :0] for x in rest))
    parts = []
    for piece in torch.arange(tokens).split([1, 2, 30, 42]):
        n, new = len(piece), Stream(*(x[:, :, piece] for x in rest))
        held = Stream(*(torch.cat(pair, 2) for pair in zip(held, new, strict=True)))
        missing = window - 1 + n - held.k.shape[2]
        if missing > 0:  # at the start nothing leaves
            held = Stream(*(F.pad(x, (0, 0) * (x.ndim - 3) + (missing, 0)) for x in held))
        leaving = held.map(lambda x, n=n: x[:, :, :n])
        out, matrix = stream_memory(q[:, :, piece], leaving, matrix, update)
        held = held.map(lambda x, n=n: x[:, :, n:])
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 2), expected)
