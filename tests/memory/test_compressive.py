"""Compressive memory against the paper's equations as a float64 loop."""

import pytest
import torch
from torch import Tensor

from infini.choices import Update
from infini.errors import InputError
from infini.memory.compressive import MemoryState, compressive_memory
from infini.memory.reference import memory_loop

B, H, G, D, V, L = 3, 4, 2, 4, 5, 8
UPDATES = ["linear", "delta"]


def inputs(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (
        torch.randn(B, heads, tokens, width, generator=generator, dtype=torch.float64).to(dtype)
        for heads, width in ((H, D), (G, D), (G, V))
    )
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def mixed_padding(tokens: int) -> Tensor:
    """Mask without padding, with padding on the left, with padding on the right."""
    mask = torch.ones(B, tokens, dtype=torch.bool)
    mask[1, : tokens // 3] = False
    mask[2, tokens - tokens // 4 :] = False
    return mask


def loop(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, update: Update) -> tuple[Tensor, ...]:
    """Results of the reference on every head of every sample, without padding."""
    out = q.new_zeros(*q.shape[:3], V)
    matrix, normalizer = q.new_zeros(B, G, D, V), q.new_zeros(B, G, D)
    for b in range(B):
        real = mask[b]
        for h in range(H):
            g = h // (H // G)
            reads, m, z = memory_loop(q[b, h, real], k[b, g, real], v[b, g, real], L, update)
            out[b, h, real], matrix[b, g], normalizer[b, g] = reads, m, z
    return out, matrix, normalizer


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("tokens", [3, 8, 29, 40])
@pytest.mark.parametrize("padded", [False, True])
def test_compressive_memory_equals_loop_with_gradients(
    update: Update, tokens: int, padded: bool
) -> None:
    mask = mixed_padding(tokens) if padded else torch.ones(B, tokens, dtype=torch.bool)
    exact = inputs(tokens)
    expected = loop(*exact, mask, update)
    single = inputs(tokens, torch.float32)
    out, state = compressive_memory(
        *single, segment_length=L, update=update, mask=mask if padded else None
    )
    got = (out, state.matrix, state.normalizer)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)

    weights = [torch.randn(t.shape, dtype=torch.float64) for t in expected]
    for outputs, leaves in ((expected, exact), (got, single)):
        unused = 0 * sum(leaf.sum() for leaf in leaves)  # a short text reads and writes nothing
        total = sum((w * t.double()).sum() for w, t in zip(weights, outputs, strict=True))
        (total + unused).backward()
    for one, other in zip(single, exact, strict=True):
        scale = other.grad.abs().max().clamp_min(1.0)
        assert (one.grad.double() - other.grad).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("update", UPDATES)
def test_compressive_memory_gradcheck(update: Update) -> None:
    # One head; several heads are compared with the loop above
    q, k, v = (x[:1, :1].detach().requires_grad_() for x in inputs(2 * L + 3))
    before = (x[:1, :1] for x in inputs(L + 2))
    start = compressive_memory(*before, segment_length=L, update=update)[1].detach()

    def run(q: Tensor, k: Tensor, v: Tensor, m: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        state = start._replace(matrix=m, normalizer=z)
        out, state = compressive_memory(q, k, v, segment_length=L, update=update, state=state)
        return out, *state[:4]

    memory = [t.clone().requires_grad_() for t in start[:2]]
    assert torch.autograd.gradcheck(run, (q, k, v, *memory))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sizes", [[1] * 29, [5, 11, 13], [8, 16, 5], [3, 26], [29]])
def test_compressive_memory_in_any_chunks(update: Update, padded: bool, sizes: list[int]) -> None:
    q, k, v = inputs(29)
    mask = mixed_padding(29) if padded else torch.ones(B, 29, dtype=torch.bool)
    whole, expected = compressive_memory(q, k, v, segment_length=L, update=update, mask=mask)
    state, parts = None, []
    for chunk in torch.arange(29).split(sizes):
        out, state = compressive_memory(
            *(x[:, :, chunk] for x in (q, k, v)),
            segment_length=L, update=update, state=state, mask=mask[:, chunk],
        )  # fmt: skip
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 2), whole)
    torch.testing.assert_close(tuple(state), tuple(expected))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sizes", [[1] * 29, [5, 11, 13], [7, 1, 21]])
def test_compressive_memory_gradients_in_any_chunks(
    update: Update, padded: bool, sizes: list[int]
) -> None:
    q, k, v = inputs(29)
    mask = mixed_padding(29) if padded else torch.ones(B, 29, dtype=torch.bool)
    whole, _ = compressive_memory(q, k, v, segment_length=L, update=update, mask=mask)
    weights = torch.randn(whole.shape, dtype=torch.float64)
    expected = torch.autograd.grad((whole * weights).sum(), (q, k, v))
    state, parts = None, []
    for chunk in torch.arange(29).split(sizes):
        out, state = compressive_memory(
            *(x[:, :, chunk] for x in (q, k, v)),
            segment_length=L, update=update, state=state, mask=mask[:, chunk],
        )  # fmt: skip
        parts.append(out)
    got = torch.autograd.grad((torch.cat(parts, 2) * weights).sum(), (q, k, v))
    torch.testing.assert_close(got, expected)


def test_compressive_memory_causality_and_later_segments() -> None:
    q, k, v = inputs(40)
    out, _ = compressive_memory(q, k, v, segment_length=L)
    at = 2 * L + 1
    moved = v.detach().clone()
    moved[:, :, at] += 1
    changed = (compressive_memory(q, k, moved, segment_length=L)[0] - out).abs().sum((0, 1, 3))
    assert not changed[: 3 * L].any()
    assert changed[3 * L :].min() > 0
    # a later segment's loss reaches an earlier segment's keys and values
    out[:, :, 3 * L :].sum().backward()
    assert k.grad[:, :, :L].abs().min() > 0
    assert v.grad[:, :, :L].abs().min() > 0


def test_compressive_memory_accumulates_in_float32() -> None:
    q, k, v = (x.detach().bfloat16() for x in inputs(29))
    out, state = compressive_memory(q, k, v, segment_length=L)
    assert out.dtype == torch.bfloat16
    assert state.matrix.dtype == state.normalizer.dtype == torch.float32
    _, exact = compressive_memory(q.float(), k.float(), v.float(), segment_length=L)
    torch.testing.assert_close(state.matrix, exact.matrix)


def test_compressive_memory_ignores_autocast() -> None:
    q, k, v = inputs(29, torch.float32)
    expected, state = compressive_memory(q, k, v, segment_length=L)
    with torch.autocast("cpu", torch.bfloat16):
        out, cast = compressive_memory(q, k, v, segment_length=L)
    assert torch.equal(out, expected)
    assert torch.equal(state.matrix, cast.matrix)


def test_memory_state_size_is_constant_and_select_reorders() -> None:
    def after(tokens: int) -> MemoryState:
        return compressive_memory(*inputs(tokens), segment_length=L)[1]

    assert after(3).nbytes == after(8).nbytes == after(1000).nbytes
    state = after(29)
    twice = state.select(torch.tensor([2, 0, 2]))
    q, k, v = inputs(13)
    order = [2, 0, 2]
    expected, _ = compressive_memory(q, k, v, segment_length=L, state=state)
    got, _ = compressive_memory(q[order], k[order], v[order], segment_length=L, state=twice)
    torch.testing.assert_close(got, expected[order])


def test_compressive_memory_rejects_state_of_another_segment_length() -> None:
    _, state = compressive_memory(*inputs(5), segment_length=L)
    with pytest.raises(ValueError, match="segment_length must be 8, as in the state, got 4"):
        compressive_memory(*inputs(5), segment_length=4, state=state)


@pytest.mark.parametrize(
    ("name", "narrow"),
    [("q", (1, 3)), ("k", (0, 1)), ("k", (2, 5)), ("k", (3, 2)), ("v", (2, 5)), ("v", (1, 1))],
)
def test_compressive_memory_rejects_shapes_that_do_not_fit(
    name: str, narrow: tuple[int, int]
) -> None:
    given = dict(zip("qkv", inputs(13), strict=True))
    given[name] = given[name].narrow(narrow[0], 0, narrow[1])
    with pytest.raises(InputError, match=r"G dividing H; got q \("):
        compressive_memory(**given, segment_length=L)


def test_compressive_memory_rejects_state_of_another_batch() -> None:
    q, k, v = inputs(5)
    _, state = compressive_memory(q, k, v, segment_length=L)
    with pytest.raises(InputError, match=r"state must be of \(batch, heads, "):
        compressive_memory(q[:1], k[:1], v[:1], segment_length=L, state=state)
    for length in (0, 1.5):
        with pytest.raises(InputError, match=r"segment_length must be (an integer )?≥ 1, got"):
            compressive_memory(q, k, v, segment_length=length)


def test_compressive_memory_is_the_same_for_any_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(10 * L)
    for update in UPDATES:
        one = compressive_memory(q, k, v, segment_length=L, update=update)[0]
        one_grads = torch.autograd.grad(one.square().sum(), (q, k, v))
        with monkeypatch.context() as patch:
            patch.setattr("infini.memory.buffers.BUFFER_ELEMENTS", {"cpu": 3 * B * H * L * D})
            other = compressive_memory(q, k, v, segment_length=L, update=update)[0]
            other_grads = torch.autograd.grad(other.square().sum(), (q, k, v))
        torch.testing.assert_close(other, one)
        torch.testing.assert_close(other_grads, one_grads)


def test_compressive_memory_rejects_invalid_options() -> None:
    with pytest.raises(InputError, match=r"^update must be one of 'linear', 'delta', got 'dleta'$"):
        compressive_memory(*inputs(5), segment_length=L, update="dleta")
    for mask in (torch.ones(B, 1), torch.ones(1, 5), torch.ones(B, 5, 1)):
        with pytest.raises(InputError, match=r"^mask must be \(3, 5\), samples and tokens, got"):
            compressive_memory(*inputs(5), segment_length=L, mask=mask)
