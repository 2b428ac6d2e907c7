"""Window models against a loop over tokens in float64 that shares only the weights."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
)

import infini
from architectures import text
from infini.choices import WindowUpdate
from infini.memory.eviction import block_layout
from infini.model.architectures import CACHE, cache_of
from infini.model.modules import infini_parameters
from infini.model.retrofit import sliding_window
from infini.model.window.rotation import Rotation
from memory.toy_retained import ReferenceCache, read_token

D, CONTEXT = 8, 64
SIZES = {
    "vocab_size": 80,
    "hidden_size": 4 * D,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**SIZES),  # a quarter of a head is rotated
    "gpt2": GPT2Config(vocab_size=80, n_embd=4 * D, n_layer=2, n_head=4, n_positions=CONTEXT),
}
ROTATED = {"llama": D, "gpt_neox": D // 4, "gpt2": 0}
# Architecture, write rule, retained pairs
RULES: list[tuple[str, WindowUpdate | None, int]] = [
    ("llama", None, 0), ("llama", "linear", 0), ("llama", "delta", 0), ("llama", "gated_delta", 0),
    ("gpt_neox", None, 0), ("gpt_neox", "gated_delta", 0),
    ("gpt2", None, 0), ("gpt2", "gated_delta", 0),
    ("llama", "none", 4), ("llama", "linear", 4), ("gpt_neox", "gated_delta", 3),
    ("gpt2", "none", 99),
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make retention blocks short, so that a short text has many."""
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", 8)


def build(name: str, update: WindowUpdate | None, retained: int, W: int, S: int) -> PreTrainedModel:
    """Build a model with large weights; the memory is in the second layer or in both."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    layers = [] if update is None else [1] if update == "linear" else [0, 1]
    rule = {"update": update or "delta", "retained": retained}
    infini.retrofit(model, "window", layers, window=W, sinks=S, **rule)
    for parameter in infini_parameters(model).values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.5)
    return model


def distinct(tokens: int) -> Tensor:
    """Return tokens without repetition: which of two pairs of equal score stays is undefined."""
    return torch.randperm(80, generator=torch.Generator().manual_seed(0))[None, :tokens]


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


class Memory:
    """Memory of one layer, token by token: k (G, D), v (G, V), q (H, D)."""

    def __init__(self, module: nn.Module):
        self.p = dict(module.named_parameters())
        self.update, self.M = module.update, torch.zeros((), dtype=torch.float64)

    def gate(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.p[f"{name}.weight"], self.p[f"{name}.bias"]
        return torch.sigmoid((unit(x) * D**0.5 * weight).sum(-1) + bias)[:, None]

    def write(self, k: Tensor, v: Tensor) -> None:
        key = unit(torch.einsum("gd,gde->ge", k, self.p["k_map"]))
        if "decay.weight" in self.p:
            self.M = self.gate("decay", k)[..., None] * self.M
        known = torch.einsum("gd,gdv->gv", key, self.M.expand(len(k), D, D))
        error = v if self.update == "linear" else v - known
        self.M = self.M + torch.einsum("gd,gv->gdv", self.gate("beta", k) * key, error)

    def read(self, q: Tensor, groups: int) -> Tensor:
        query = unit(torch.einsum("hd,hde->he", q, self.p["q_map"]))
        M = self.M.expand(groups, D, D).repeat_interleave(len(q) // groups, 0)
        return self.gate("gate", q) * torch.einsum("hd,hdv,hvw->hw", query, M, self.p["out_map"])


def rotate_back(x: Tensor, positions: Tensor, width: int) -> Tensor:
    """Rotate the first `width` of x, (n, D), back by positions, (n,), as complex numbers."""
    half = width // 2
    angles = positions[:, None] * 10_000.0 ** (-2 * torch.arange(half).double() / max(width, 1))
    z = torch.complex(x[:, :half], x[:, half:width]) * torch.exp(-1j * angles)
    return torch.cat([z.real, z.imag, x[:, width:]], -1)


class Window(ReferenceCache):
    """Cache without retained pairs and blocks."""

    def distances(self, t: int) -> dict[int, int]:
        edge = self.window + self.sinks - 1
        visible = (j for j in range(t + 1) if j < self.sinks or t - j < self.window)
        return {j: (min(t, edge) if j < self.sinks else t) - j for j in visible}


def attend(
    qkv: tuple[Tensor, Tensor, Tensor], W: int, S: int, width: int, own: nn.Module
) -> Tensor:
    """Attend to sinks, window, retained pairs and memory: (T, H·V)."""
    q, k, v = qkv  # (H, T, D), (G, T, D)
    H, G, out, layer = len(q), len(k), [], own.infini_window
    memory = None if layer.memory is None else Memory(layer.memory)
    bias = torch.zeros(H) if layer.retained is None else layer.retained.bias
    weight = v.new_zeros(G, D) if layer.retained is None else layer.retained.weight
    caches: list[ReferenceCache] = [
        Window(W, S, 0, CONTEXT)
        if layer.retained is None
        else ReferenceCache(W, S, layer.retained.num_retained, CONTEXT)
        for _ in range(G)
    ]
    for t in range(q.shape[1]):
        if memory is not None and t - W >= S:
            memory.write(k[:, t - W], v[:, t - W])
        parts = [
            read_token((some, k[g], v[g]), t, caches[g], b, w, partial(rotate_back, width=width))
            for g, (some, b, w) in enumerate(zip(q.chunk(G), bias.chunk(G), weight, strict=True))
        ]
        y = torch.cat(parts)
        out.append((y if memory is None else y + memory.read(q[:, t], G)).flatten())
    return torch.stack(out)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, D)).transpose(0, 1)  # (T, H·D) → (H, T, D)


Attend = Callable[[tuple[Tensor, Tensor, Tensor], nn.Module], Tensor]


def llama(decoder: nn.Module, tokens: Tensor, attend: Attend) -> Tensor:
    x = decoder.embed_tokens(tokens)
    for layer in decoder.layers:
        own, y = layer.self_attn, layer.input_layernorm(x)
        qkv = heads(own.q_proj(y)), heads(own.k_proj(y)), heads(own.v_proj(y))
        x = x + own.o_proj(attend(qkv, own))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return decoder.norm(x)


def gpt_neox(decoder: nn.Module, tokens: Tensor, attend: Attend) -> Tensor:
    x = decoder.embed_in(tokens)
    for layer in decoder.layers:
        own = layer.attention
        fused = own.query_key_value(layer.input_layernorm(x)).unflatten(-1, (-1, 3, D))
        qkv = tuple(part.transpose(0, 1) for part in fused.unbind(-2))
        mlp = layer.mlp(layer.post_attention_layernorm(x))  # beside the attention
        x = x + own.dense(attend(qkv, own)) + mlp
    return decoder.final_layer_norm(x)


def gpt2(decoder: nn.Module, tokens: Tensor, attend: Attend) -> Tensor:
    places = torch.arange(len(tokens)) % CONTEXT
    x = decoder.wte(tokens) + decoder.wpe(places)
    for layer in decoder.h:
        own = layer.attn
        qkv = tuple(heads(part) for part in own.c_attn(layer.ln_1(x)).chunk(3, -1))
        x = x + own.c_proj(attend(qkv, own))
        x = x + layer.mlp(layer.ln_2(x))
    return decoder.ln_f(x)


DECODERS = {"llama": llama, "gpt_neox": gpt_neox, "gpt2": gpt2}


def loop(model: PreTrainedModel, name: str, tokens: Tensor, W: int, S: int) -> Tensor:
    """Compute the logits, (T, vocabulary), of a float64 model."""
    hidden = DECODERS[name](
        model.get_decoder(), tokens, lambda qkv, own: attend(qkv, W, S, ROTATED[name], own)
    )
    return model.get_output_embeddings()(hidden)


WINDOWS = [(2, 3), (6, 0), (1, 0), (5, 1), (50, 4)]
CASES = [(*rule, *window) for rule in RULES for window in WINDOWS[: 5 if rule[0] == "llama" else 2]]


@pytest.mark.parametrize(("name", "update", "retained", "W", "S"), CASES)
@torch.no_grad()
def test_window_forward_equals_the_loop_whole_and_in_chunks(
    name: str, update: WindowUpdate | None, retained: int, W: int, S: int
) -> None:
    model, tokens = (
        build(name, update, retained, W, S),
        distinct(70),
    )  # beyond windows, and the context
    expected = loop(copy.deepcopy(model).double(), name, tokens[0], W, S)[None].float()
    for chunks in ([70], [1] * 9 + [30, 2, 29], [W + S, 70 - W - S]):
        state, out = None, []
        for piece in tokens.split(chunks, 1):
            done = model(piece, **{CACHE: state}, use_cache=True)
            state = cache_of(done)
            out.append(done.logits)
        torch.testing.assert_close(torch.cat(out, 1), expected, rtol=1e-4, atol=2e-5)
    short = tokens[:, : W + S]
    torch.testing.assert_close(model(short).logits, expected[:, : W + S], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("name", "update", "retained"), RULES)
def test_window_gradients_equal_the_loops(
    name: str, update: WindowUpdate | None, retained: int
) -> None:
    model, tokens = build(name, update, retained, 5, 2).requires_grad_(True), distinct(63)
    exact = copy.deepcopy(model).double()
    expected = loop(exact, name, tokens[0], 5, 2)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (model(tokens, use_cache=False).logits[0] * weights.float()).sum().backward()
    expected_grads = {key: parameter.grad for key, parameter in exact.named_parameters()}
    for key, parameter in model.named_parameters():
        largest = expected_grads[key].abs().max()
        assert largest > 0, key
        assert (parameter.grad - expected_grads[key]).abs().max() < 1e-5 * max(1, largest), key


def echoes(batch: int, tokens: int, seed: int) -> Tensor:
    """Return tokens of which nine in ten repeat the third last."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(16, (batch, tokens), generator=generator)
    repeats = torch.rand(batch, tokens, generator=generator) < 0.9
    for t in range(3, tokens):
        x[:, t] = torch.where(repeats[:, t], x[:, t - 3], x[:, t])
    return x


@torch.no_grad()
def nats(model: PreTrainedModel, tokens: Tensor, start: int) -> float:
    """Return the mean loss, nats per token, from `start` on."""
    logits = model(tokens, use_cache=False).logits[:, start - 1 : -1]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, start:].flatten()).item()


# GPT-2's positions start again after every context: a window across that point has no order
@pytest.mark.parametrize(
    ("name", "window", "sinks", "tolerance"), [("llama", 32, 2, 0.1), ("gpt2", 8, 0, 0.6)]
)
def test_window_reads_far_beyond_the_bases_context(
    name: str, window: int, sinks: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copy.deepcopy(CONFIGS[name])
    config.update({"vocab_size": 16, "num_hidden_layers": 1, "n_layer": 1})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()  # no dropout
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(120):
        tokens = echoes(8, CONTEXT, step)
        logits = model(tokens[:, :-1]).logits.flatten(0, 1)
        F.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    used: list[Tensor] = []
    rotate = Rotation.__call__

    def record(self: Rotation, x: Tensor, positions: Tensor, *memo: Any, **named: Any) -> Tensor:
        used.append(positions)
        return rotate(self, x, positions, *memo, **named)

    monkeypatch.setattr(Rotation, "__call__", record)
    short, long = nats(model, echoes(16, CONTEXT, 999), 16), echoes(1, 1500, 1000)
    assert short < 1.6, "the base has learned: log 16 is 2.8"
    with sliding_window(model, window, sinks):
        used.clear()
        assert nats(model, long, 16 * CONTEXT) < short + tolerance
    assert all(positions.abs().max() < CONTEXT for positions in used)
    assert len(used) == (4 if name == "llama" else 0)


@pytest.mark.parametrize("retained", [0, 5])
@torch.no_grad()
def test_compiled_window_equals_eager(retained: int) -> None:
    model = build("llama", "delta", retained, 7, 3)
    compiled, tokens = torch.compile(model, backend="eager"), text(2, 40)
    expected = model(tokens, use_cache=False).logits
    torch.testing.assert_close(compiled(tokens, use_cache=False).logits, expected)
