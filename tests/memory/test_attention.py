"""InfiniAttention against equations 3-6 as float64 loops, by head and token."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import infini.memory.attention
from infini.errors import InputError
from infini.memory.attention import HeadConfig, InfiniAttention
from infini.memory.local import alibi_slopes
from infini.memory.reference import local_loop, memory_loop, rotary_loop

L, T, HIDDEN, HEADS, GROUPS = 8, 29, 16, 4, 2
KINDS = [
    (local, position) for local in ("softmax", "linear") for position in ("none", "alibi", "rope")
]


def attention(local: str, position: str, update: str = "delta") -> InfiniAttention:
    torch.manual_seed(0)
    module = InfiniAttention(
        HIDDEN, HEADS, L, update, local, position, heads=HeadConfig(num_kv_heads=GROUPS)
    ).double()
    torch.nn.init.normal_(module.beta)
    return module


def loop(module: InfiniAttention, x: Tensor) -> Tensor:
    """Output of one sample without padding, (T, hidden)."""
    q, k, v = (
        proj(x).unflatten(-1, (-1, module.head_dim)).transpose(0, 1)  # (H or G, T, D)
        for proj in (module.q_proj, module.k_proj, module.v_proj)
    )
    heads = []
    for h in range(HEADS):
        g = h // (HEADS // GROUPS)
        reads, _, _ = memory_loop(q[h], k[g], v[g], L, module.update)
        slope = alibi_slopes(HEADS)[h].item() if module.position == "alibi" else 0.0
        rotated = [q[h], k[g]]
        if module.position == "rope":
            rotated = [rotary_loop(one, L) for one in rotated]
        scale = 1 / math.sqrt(module.head_dim)
        local = local_loop(*rotated, v[g], L, module.local, slope, scale)
        gate = torch.sigmoid(module.beta[h])
        mixed = gate * reads + (1 - gate) * local
        heads.append(torch.cat([local[:L], mixed[L:]]))  # the memory is empty in the first segment
    return module.o_proj(torch.stack(heads, 1).flatten(1))


@pytest.mark.parametrize(("local", "position"), KINDS)
@pytest.mark.parametrize("update", ["linear", "delta"])
def test_infini_attention_equals_loop_with_gradients(
    local: str, position: str, update: str
) -> None:
    exact = attention(local, position, update)
    single = attention(local, position, update).float()
    x = torch.randn(3, T, HIDDEN, dtype=torch.float64)
    mask = torch.ones(3, T, dtype=torch.bool)
    mask[1, :6] = False
    mask[2, -5:] = False
    weights = torch.randn(3, T, HIDDEN, dtype=torch.float64)
    noisy = torch.where(mask[..., None], x, 1e3).float().requires_grad_()
    got, _ = single(noisy, attention_mask=mask)
    (got.double() * weights * mask[..., None]).sum().backward()
    x.requires_grad_()
    for b in range(3):
        expected = loop(exact, x[b, mask[b]])
        torch.testing.assert_close(got[b, mask[b]].double(), expected, rtol=1e-5, atol=1e-5)
        (expected * weights[b, mask[b]]).sum().backward()
    pairs = [(noisy.grad, x.grad * mask[..., None])]
    pairs += [
        (a.grad, b.grad) for a, b in zip(single.parameters(), exact.parameters(), strict=True)
    ]
    for one, other in pairs:
        assert (one.double() - other).abs().max() <= 1e-5 * other.abs().max().clamp_min(1.0)


@pytest.mark.parametrize(("local", "position"), KINDS)
@pytest.mark.parametrize("sizes", [[5, 11, 13], [1] * T, [8, 8, 13]])
def test_infini_attention_in_chunks_and_causality(
    local: str, position: str, sizes: list[int]
) -> None:
    module = attention(local, position)
    x = torch.randn(2, T, HIDDEN, dtype=torch.float64)
    whole, expected = module(x)
    state, parts = None, []
    for chunk in x.split(sizes, 1):
        out, state = module(chunk, state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(tuple(state), tuple(expected))

    at = 13
    perturbed = x.clone()
    perturbed[:, at] += 1
    moved = (module(perturbed)[0] - whole).abs().sum((0, 2))
    assert not moved[:at].any()
    assert moved[at] > 0
    assert moved[2 * L :].min() > 0  # through the memory


@pytest.mark.parametrize("past", [0, 5, L])
def test_long_text_in_pieces_equals_whole(past: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = attention("softmax", "rope"), torch.randn(3, past + 61, HIDDEN).double()
    mask = torch.ones(3, past + 61, dtype=torch.bool)
    mask[0, -20:], mask[1, past : past + 33] = False, False  # a piece may have no token
    weights, results, sizes = torch.randn(3, 61, HIDDEN).double(), [], []
    advance = InfiniAttention._advance_piece

    def record(self: InfiniAttention, hidden_states: Tensor, *rest: Any) -> Any:
        sizes.append(hidden_states.shape[1])
        return advance(self, hidden_states, *rest)

    monkeypatch.setattr(InfiniAttention, "_advance_piece", record)
    for tokens in (100, 2 * L - 1):  # whole, and in pieces of two segments
        monkeypatch.setattr(infini.memory.attention, "PIECE_TOKENS", tokens)
        leaf = x.clone().requires_grad_()
        state = module(leaf[:, :past], None, mask[:, :past])[1] if past else None
        sizes.clear()
        out, state = module(leaf[:, past:], state, mask[:, past:])
        parameters = [leaf, *module.parameters()]
        gradients = torch.autograd.grad((out * weights).sum() + state.matrix.sum(), parameters)
        results.append((out, *state, *gradients))
    assert sizes == ([61] if past == 5 else [16, 16, 16, 13])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("local", ["softmax", "linear"])
def test_infini_attention_gradcheck(local: str) -> None:
    module = attention(local, "alibi")
    x = torch.randn(1, 2 * L + 3, HIDDEN, dtype=torch.float64, requires_grad=True)
    names = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "beta"]
    chosen = [module.get_parameter(name) for name in names]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        new = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, new, (x,))[0]

    assert torch.autograd.gradcheck(run, (x, *chosen), fast_mode=True)


def test_empty_memory_gives_the_local_output() -> None:
    module, x = attention("softmax", "none"), torch.randn(1, L, HIDDEN, dtype=torch.float64)
    before, _ = module(x)
    module.beta.data.fill_(4.0)
    assert torch.equal(module(x)[0], before)


def test_infini_attention_bfloat16_and_autocast() -> None:
    module, x = attention("softmax", "rope").float(), torch.randn(1, T, HIDDEN)
    exact, _ = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        out, state = module(x)
    out.float().square().sum().backward()
    assert state.matrix.dtype == torch.float32
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    low, state = module.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert state.matrix.dtype == torch.float32
    torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.05)


def test_infini_attention_rejects_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_heads 4, got 10"):
        InfiniAttention(10, 4)
    with pytest.raises(ValueError, match="num_heads must be a multiple of num_kv_heads 3, got 4"):
        InfiniAttention(16, 4, heads=HeadConfig(num_kv_heads=3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_kv_heads", x) for x in (0, -1, 2.0, True)),
        *(("head_dim", x) for x in (0, -4, 4.0, True)),
        *(("scale", x) for x in (math.nan, math.inf, True, "1", 1e39)),
        *((bias, x) for bias in ("qkv_bias", "out_bias") for x in (1, None)),
    ],
)
def test_head_config_rejects_invalid_values(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name} must be .*, got "):
        HeadConfig(**{name: value})


def test_rope_rejects_odd_head_dim() -> None:
    with pytest.raises(InputError, match='head_dim must be even with position="rope", got 5'):
        InfiniAttention(20, 4, position="rope")
    InfiniAttention(20, 4, position="alibi")


@pytest.mark.parametrize("sizes", [(16, 0), (0, 2), (16, 2, 0), (16, 2, 4.0), (16, 2.0)])
def test_infini_attention_rejects_invalid_sizes(sizes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="must be "):
        InfiniAttention(*sizes)


def test_infini_attention_rejects_hidden_states_of_another_shape() -> None:
    for shape in ((3, 16), (2, 3, 8)):
        with pytest.raises(InputError, match=r"hidden_states must be \(batch, tokens, 16\), got"):
            InfiniAttention(16, 2, 4)(torch.zeros(shape))


@pytest.mark.parametrize("typo", [{"update": "dleta"}, {"local": "sofmax"}, {"position": "rop"}])
def test_infini_attention_rejects_unknown_choices(typo: dict[str, str]) -> None:
    ((name, value),) = typo.items()
    with pytest.raises(InputError, match=rf"^{name} must be one of .*, got '{value}'$"):
        InfiniAttention(16, 4, **typo)
