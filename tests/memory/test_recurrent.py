"""Recurrent memory against its equations as a float64 loop over tokens."""

import pytest
import torch
from torch import Tensor

from infini.choices import Update
from infini.memory.recurrent import RecurrentState, recurrent_memory
from memory.toy_recurrent import UPDATES, B, H, V, assert_close_to_loop, inputs, mixed_padding


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("delay", [1, 3, 40, 300])
@pytest.mark.parametrize("tokens", [1, 3, 31, 32, 33])
def test_recurrent_memory_equals_loop_with_gradients(
    update: Update, decays: bool, delay: int, tokens: int
) -> None:
    leaves = inputs(tokens, torch.float32, decays)
    assert_close_to_loop(leaves, inputs(tokens, decays=decays), delay, update)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize(
    ("tokens", "delay"), [(63, 1), (64, 40), (65, 3), (129, 1), (129, 3), (200, 3), (200, 64)]
)
def test_recurrent_memory_of_long_texts_equals_loop(
    update: Update, tokens: int, delay: int
) -> None:
    for decays in (False, True):
        leaves = inputs(tokens, torch.float32, decays)
        assert_close_to_loop(leaves, inputs(tokens, decays=decays), delay, update)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("delay", [1, 4])
def test_recurrent_memory_gradcheck(
    update: Update, decays: bool, delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infini.memory.chunks.CHUNK_SIZE", 3)

    def small(tokens: int, decays: bool) -> list[Tensor]:  # one sample, 2 query heads, 1 group
        q, *rest = (x.detach()[:1] for x in inputs(tokens, decays=decays))
        return [x[..., :3] if x.ndim == 4 else x for x in (q[:, :2], *(x[:, :1] for x in rest))]

    leaves = [x.clone().requires_grad_() for x in small(8, decays)]
    before = small(6, True)
    start = recurrent_memory(*before, delay=delay, update=update)[1]
    state = [t.clone().requires_grad_() for t in start]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        state = RecurrentState(*tensors[-5:])
        out, after = recurrent_memory(*tensors[:-5], delay=delay, update=update, state=state)
        return out, *(t for t in after if t.requires_grad)

    assert torch.autograd.gradcheck(run, (*leaves, *state))


def in_pieces(
    leaves: tuple[Tensor, ...], sizes: list[int], mask: Tensor, delay: int, update: Update
) -> tuple[Tensor, RecurrentState]:
    state, parts = None, []
    for piece in torch.arange(leaves[0].shape[2]).split(sizes):
        out, state = recurrent_memory(
            *(x[:, :, piece] for x in leaves),
            delay=delay, update=update, state=state, mask=mask[:, piece],
        )  # fmt: skip
        parts.append(out)
    return torch.cat(parts, 2), state


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("delay", [1, 6, 100])
@pytest.mark.parametrize("sizes", [[1] * 75, [5, 11, 59], [32, 43]])
def test_recurrent_memory_in_any_chunks(
    update: Update, decays: bool, padded: bool, delay: int, sizes: list[int]
) -> None:
    leaves = inputs(75, decays=decays)
    mask = mixed_padding(75) if padded else torch.ones(B, 75, dtype=torch.bool)
    whole, state = in_pieces(leaves, [75], mask, delay, update)
    got, last = in_pieces(leaves, sizes, mask, delay, update)
    torch.testing.assert_close(got, whole)
    torch.testing.assert_close(tuple(last), tuple(state))

    weights = [torch.randn(t.shape, dtype=torch.float64) for t in (whole, *state)]
    gradients = []
    for outputs in ((whole, *state), (got, *last)):
        total = sum((w * t).sum() for w, t in zip(weights, outputs, strict=True))
        gradients.append(torch.autograd.grad(total, leaves))
    torch.testing.assert_close(*gradients)


def test_pending_tokens_keep_their_decays() -> None:
    first, second = inputs(20), inputs(30, decays=False)
    joined = [torch.cat(pair, 2) for pair in zip(first[:4], second, strict=True)]
    decay = torch.cat([first[4], torch.zeros_like(second[3])], 2)
    whole, _ = recurrent_memory(*joined, decay, delay=9)
    out, state = recurrent_memory(*first, delay=9)
    rest, _ = recurrent_memory(*second, delay=9, state=state)
    torch.testing.assert_close(torch.cat([out, rest], 2), whole)


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("delay", [1, 2, 33])
def test_delay_decides_which_reads_see_a_token(update: Update, delay: int) -> None:
    leaves, at = [x.detach() for x in inputs(100)], 40
    leaves[4] = leaves[4].clamp_min(-0.1)
    out, _ = recurrent_memory(*leaves, delay=delay, update=update)
    for index in range(1, 5):
        moved = list(leaves)
        moved[index] = moved[index].clone()
        moved[index][:, :, at] += 0.1
        changed = recurrent_memory(*moved, delay=delay, update=update)[0] - out
        changed = changed.abs().sum((0, 1, 3))
        assert not changed[: at + delay].any()
        assert changed[at + delay] > 1e-4
    assert not out[:, :, :delay].any()
    assert out[:, :, delay].abs().min() > 0


def test_recurrent_memory_accumulates_in_float32() -> None:
    leaves = [x.detach().bfloat16().requires_grad_() for x in inputs(70)]
    out, state = recurrent_memory(*leaves, delay=4)
    assert out.dtype == torch.bfloat16
    assert state.matrix.dtype == torch.float32
    exact = [x.detach().float().requires_grad_() for x in leaves]
    expected, single = recurrent_memory(*exact, delay=4)
    torch.testing.assert_close(state.matrix, single.matrix)
    assert torch.equal(out, expected.bfloat16())
    state.matrix.sum().backward()
    single.matrix.sum().backward()
    for one, other in zip(leaves[1:], exact[1:], strict=True):
        assert torch.equal(one.grad, other.grad.bfloat16())


def test_recurrent_memory_ignores_autocast() -> None:
    leaves = inputs(70, torch.float32)
    expected, state = recurrent_memory(*leaves, delay=4)
    expected_gradients = torch.autograd.grad(expected.sum(), leaves)
    with torch.autocast("cpu", torch.bfloat16):
        out, cast = recurrent_memory(*leaves, delay=4)
        got = torch.autograd.grad(out.sum(), leaves)
    assert torch.equal(out, expected)
    assert torch.equal(state.matrix, cast.matrix)
    assert all(map(torch.equal, got, expected_gradients))


def test_recurrent_state_size_is_constant_and_select_reorders() -> None:
    def after(tokens: int) -> RecurrentState:
        return recurrent_memory(*inputs(tokens), delay=9)[1]

    assert after(1).nbytes == after(9).nbytes == after(1000).nbytes
    state = after(1000)
    assert all(t.untyped_storage().nbytes() <= t.nbytes for t in state.detach())
    order = [2, 0, 2]
    leaves = inputs(13)
    expected, _ = recurrent_memory(*leaves, delay=9, state=state)
    twice = state.select(torch.tensor(order))
    got, _ = recurrent_memory(*(x[order] for x in leaves), delay=9, state=twice)
    torch.testing.assert_close(got, expected[order])


def test_recurrent_memory_of_no_tokens() -> None:
    _, state = recurrent_memory(*inputs(20), delay=3)
    out, same = recurrent_memory(*(x[:, :, :0] for x in inputs(20)), delay=3, state=state)
    assert out.shape == (B, H, 0, V)
    torch.testing.assert_close(tuple(same), tuple(state))


def test_recurrent_memory_rejects_invalid_options() -> None:
    with pytest.raises(ValueError, match="delay must be ≥ 1, got 0"):
        recurrent_memory(*inputs(5), delay=0)
    _, state = recurrent_memory(*inputs(5), delay=3)
    with pytest.raises(ValueError, match="delay must be 3, as in the state, got 1"):
        recurrent_memory(*inputs(5), state=state)
    with pytest.raises(TypeError, match="segment_length"):
        recurrent_memory(*inputs(5), segment_length=3)
    with pytest.raises(ValueError, match="update must be one of 'linear', 'delta', got 'dleta'"):
        recurrent_memory(*inputs(5), update="dleta")
