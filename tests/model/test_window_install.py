"""The window in every architecture: exact on short texts, equal in any chunks, with a memory."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, Qwen2MoeConfig, Qwen2MoeForCausalLM

import infini
from architectures import GROUPED, REFUSED, WINDOWED, text, tiny
from infini.errors import InputError
from infini.memory.eviction import block_layout
from infini.model.architectures import CACHE, cache_of
from infini.model.modules import infini_parameters
from infini.model.retrofit import sliding_window

W, S = 7, 3
# A sliding window of 5 tokens in some layers
HYBRID = ("gemma2", "gemma3", "gpt_oss", "afmoe")
# Grouped heads, learned positions, soft cap, own window, layers without positions, interleaved
RETAINING = ("llama", "gpt2", "gemma2", "gpt_oss", "smollm3", "glm")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def case_name(case: tuple[str, int]) -> str:
    return case[0] + ("-retained" if case[1] else "")


def train(model: PreTrainedModel) -> PreTrainedModel:
    """Give the memory large weights."""
    torch.manual_seed(1)
    for parameter in infini_parameters(model).values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.5)
    return model


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make retention blocks short, so that a short text has many."""
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", 8)


@pytest.fixture(params=[*product(WINDOWED, [0]), *product(RETAINING, [5])], ids=case_name)
def case(request: pytest.FixtureRequest) -> tuple[str, int]:
    """An architecture and its number of retained pairs."""
    return request.param


@pytest.fixture
def name(case: tuple[str, int]) -> str:
    return case[0]


@pytest.fixture
def options(case: tuple[str, int]) -> dict[str, Any]:
    """Retained pairs alone or, for one architecture, beside the matrix."""
    alone = case[1] and case[0] != "llama"
    return {"window": W, "retained": case[1], "update": "none" if alone else "gated_delta"}


@pytest.fixture
def trained(name: str, options: dict[str, Any]) -> PreTrainedModel:
    return train(infini.retrofit(tiny(name), "window", sinks=S, **options))


@torch.no_grad()
def test_window_equals_base_on_short_texts_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    base = tiny(name)
    own = 5 if name in (*HYBRID, "mistral_5", "cohere2") else W + S
    tokens = text(2, min(W + S, own))
    expected = base(tokens).logits
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    padded = base(tokens, attention_mask=mask, position_ids=positions).logits
    longer = base(text(1, 40)).logits
    trainable = {n: p.requires_grad for n, p in base.named_parameters()}
    model = train(infini.retrofit(base, "window", sinks=S, **options))
    assert torch.equal(model(tokens).logits, expected)
    assert torch.equal(model(tokens, use_cache=False).logits, expected)
    assert torch.equal(model(tokens, attention_mask=mask).logits[mask == 1], padded[mask == 1])
    assert not torch.allclose(model(text(1, 40)).logits, longer)
    assert torch.equal(infini.remove(model)(text(1, 40)).logits, longer)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == trainable


@pytest.mark.parametrize("name", WINDOWED)
@torch.no_grad()
def test_untrained_window_equals_base_with_a_window_mask(name: str) -> None:
    model, tokens = tiny(name), text(2, 40)
    learned = name in ("gpt2", "opt")
    sinks = S if learned else 0  # rotary sinks are at another distance beyond the edge
    positions = torch.arange(40)[None].expand(2, -1)  # OPT would count the mask
    mask = masks(model, 40, sinks)
    expected = model(tokens, attention_mask=mask, position_ids=positions).logits
    infini.retrofit(model, "window", window=W, sinks=sinks)
    torch.testing.assert_close(model(tokens).logits, expected, **CLOSE)
    infini.remove(model)
    with sliding_window(model, W, sinks):
        torch.testing.assert_close(model(tokens).logits, expected, **CLOSE)
    assert not hasattr(model, "infini_config")


@pytest.mark.parametrize("window", [3, W])  # below and above the base's own, 5
@pytest.mark.parametrize("name", HYBRID)
@torch.no_grad()
def test_layers_with_a_window_of_their_own_keep_it(name: str, window: int) -> None:
    model, tokens = tiny(name), text(2, 40)
    expected = model(tokens, attention_mask=masks(model, 40, 0, window)).logits
    infini.retrofit(model, "window", window=window, sinks=0)
    kinds = model.config.layer_types
    assert model.infini_config["layers"] == [
        i for i, kind in enumerate(kinds) if kind == "full_attention"
    ]
    torch.testing.assert_close(model(tokens).logits, expected, **CLOSE)
    first = model(tokens[:, :2])
    second = model(tokens[:, 2:], **{CACHE: cache_of(first)})
    chunks = torch.cat([first.logits, second.logits], 1)
    torch.testing.assert_close(chunks, expected, **CLOSE)
    held = [len(state.keys[0, 0]) for _, state in sorted(cache_of(second).states.items())]
    assert held == [4 if kind == "sliding_attention" else window - 1 for kind in kinds]


@pytest.mark.parametrize("name", [*HYBRID, "mistral_5"])
@torch.no_grad()
def test_window_state_is_constant_beyond_the_bases_own_window(name: str) -> None:
    model = infini.retrofit(tiny(name), "window", window=20, sinks=S)
    sizes = [cache_of(model(text(1, length))).nbytes for length in (5, 6, 20 + S, 60)]
    tokens = text(1, 60).nbytes  # what a cache notes of each token is on the CPU
    assert sizes[0] < sizes[1]
    assert max(sizes[1:]) - min(sizes[1:]) < tokens


@pytest.mark.parametrize("name", ["llama", *HYBRID, "mistral_5"])
@torch.no_grad()
def test_padding_between_calls_does_not_count(name: str) -> None:
    model, tokens = infini.retrofit(tiny(name), "window", window=30, sinks=S), text(1, 14)
    expected = model(tokens).logits
    first = torch.cat([tokens[:, :6], torch.zeros(1, 4, dtype=torch.int64)], 1)
    mask = torch.tensor([[1] * 6 + [0] * 4 + [1] * 8])
    cache = cache_of(model(first, attention_mask=mask[:, :10]))
    second = model(tokens[:, 6:], attention_mask=mask, **{CACHE: cache}).logits
    torch.testing.assert_close(second, expected[:, 6:], **CLOSE)


def test_base_that_does_not_tell_its_sliding_windows_is_refused() -> None:
    config = Qwen2MoeConfig(
        **GROUPED, moe_intermediate_size=8, shared_expert_intermediate_size=8, num_experts=4,
        use_sliding_window=True, sliding_window=20, max_window_layers=1,
    )  # fmt: skip
    model = Qwen2MoeForCausalLM(config).eval()
    message = r"has sliding windows that infini does not see .*: use method=\"parallel\"$"
    with pytest.raises(InputError, match=message):
        infini.retrofit(model, "window", window=40)
    assert model(text(1, 5)).logits.isfinite().all()


def test_every_layer_has_a_memory_where_all_have_a_window_of_their_own() -> None:
    model = infini.retrofit(tiny("mistral_5"), "window", window=3)
    assert model.infini_config["layers"] == [0, 1, 2]


def masks(model: PreTrainedModel, tokens: int, sinks: int, window: int = W) -> Any:
    """Return additive masks, (1, 1, T, T), of the window and of the base's own window."""
    config = model.config
    t, j = torch.arange(tokens)[:, None], torch.arange(tokens)

    def mask(width: int) -> Tensor:
        visible = (j <= t) & ((t - j < width) | (j < sinks))
        return torch.zeros(1, 1, tokens, tokens).masked_fill(
            ~visible, torch.finfo(torch.float32).min
        )

    own = getattr(config, "sliding_window", None) or window
    kinds = set(getattr(config, "layer_types", None) or ())
    if "sliding_attention" in kinds:
        return {"full_attention": mask(window), "sliding_attention": mask(own)}
    return mask(min(window, own) if config.model_type == "mistral" else window)


@torch.no_grad()
def test_window_forward_is_independent_of_chunks_and_padding(
    trained: PreTrainedModel,
) -> None:
    tokens = text(2, 60)
    whole = trained(tokens, use_cache=False).logits
    for chunks in ([4, 4, 1, 1, 1, 5, 1, 43], [10, 50], [25, 35]):
        cache, out = None, []
        for chunk in tokens.split(chunks, 1):
            done = trained(chunk, **{CACHE: cache}, use_cache=True)
            cache = cache_of(done)
            out.append(done.logits)
        torch.testing.assert_close(torch.cat(out, 1), whole, **CLOSE)

    lengths = [60, 4, 11, 37]
    for side in ("left", "right"):
        pads = [(60 - n, 0) if side == "left" else (0, 60 - n) for n in lengths]
        rows = torch.cat([F.pad(text(1, n), pad) for n, pad in zip(lengths, pads, strict=True)])
        mask = (rows != 0).long()
        cache, out = None, []
        for end in (5, 6, 20, 60):
            begin = sum(o.shape[1] for o in out)
            done = trained(
                rows[:, begin:end], attention_mask=mask[:, :end], **{CACHE: cache}, use_cache=True
            )
            cache = cache_of(done)
            out.append(done.logits)
        at_once = trained(rows, attention_mask=mask, use_cache=False).logits
        for row, n in enumerate(lengths):
            alone = trained(text(1, n), use_cache=False).logits[0]
            for padded in (torch.cat(out, 1), at_once):
                torch.testing.assert_close(padded[row][mask[row] == 1], alone, **CLOSE)


@torch.no_grad()
def test_window_is_causal_and_only_memory_reaches_beyond_it(
    name: str, options: dict[str, Any]
) -> None:
    tokens = text(1, 40)
    early, late = tokens.clone(), tokens.clone()
    early[0, S] = 1 + tokens[0, S] % 49
    late[0, 30] = 1 + tokens[0, 30] % 49
    model = tiny(name)
    reach = S + 3 * (W - 1)  # last token that token S reaches through three layers
    with sliding_window(model, W, 0):
        a, b = model(tokens).logits, model(early).logits
        torch.testing.assert_close(a[:, reach + 1 :], b[:, reach + 1 :], rtol=0, atol=0)
        assert not torch.equal(a[:, S + W - 1], b[:, S + W - 1])
    train(infini.retrofit(model, "window", sinks=0, **options))
    a, b = model(tokens).logits, model(early).logits
    assert (a - b)[:, reach + 1 :].abs().max() > 1e-5
    b = model(late).logits
    # Experts multiply the tokens that they get, and rounding depends on their number
    atol = 1e-6 if name in ("gpt_oss", "afmoe") else 0
    torch.testing.assert_close(a[:, :30], b[:, :30], rtol=0, atol=atol)
    assert not torch.equal(a[:, 30], b[:, 30])


@torch.no_grad()
def test_window_generate_equals_forward(trained: PreTrainedModel) -> None:
    lengths, new = [3, 41, 28], 6 * W  # more than ten windows in all
    rows = torch.cat([F.pad(text(1, n), (41 - n, 0)) for n in lengths])
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    out = trained.generate(
        rows, attention_mask=(rows != 0).long(), max_new_tokens=new, do_sample=False, **options
    )
    for row, n in enumerate(lengths):
        written = out.sequences[row, 41 - n :][None]
        logits = trained(written, use_cache=False).logits[0, n - 1 : -1]
        torch.testing.assert_close(torch.stack(out.logits, 1)[row], logits, rtol=1e-3, atol=1e-4)
        assert torch.equal(logits.argmax(-1), written[0, n:])
    size = cache_of(out).nbytes
    cache = cache_of(trained(text(3, 200)))
    assert size == cache.nbytes
    assert cache.get_seq_length() == 200


@pytest.mark.parametrize(
    "case", [("llama", 0), ("gpt2", 0), ("gemma3", 0), ("llama", 5), ("gpt2", 5)], ids=case_name
)
@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3, "do_sample": False},
        {"do_sample": True},
        {"do_sample": False, "prefill_chunk_size": 5},
    ],
    ids=["beams", "sampled", "chunks"],
)
@torch.no_grad()
def test_window_generate_with_beams_sampling_and_chunks(
    trained: PreTrainedModel, how: dict[str, Any]
) -> None:
    tokens, written = text(2, 37), []
    for use in (True, False):
        torch.manual_seed(0)
        given = how if use else {k: v for k, v in how.items() if "prefill" not in k}
        written.append(trained.generate(tokens, use_cache=use, max_new_tokens=8, **given))
    assert torch.equal(*written)


@torch.no_grad()
def test_window_model_and_memory_round_trip(
    trained: PreTrainedModel, name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    tokens = text(2, 40)
    expected = trained(tokens, use_cache=False).logits
    trained.save_pretrained(tmp_path / "model")
    for read in (6, 25):
        infini.save_memory(cache_of(trained(tokens[:, :read])), tmp_path / "memory")
        model = infini.load(tmp_path / "model", tiny(name))
        state = infini.load_memory(tmp_path / "memory", model)
        rest = model(tokens[:, read:], **{CACHE: state}).logits
        torch.testing.assert_close(rest, expected[:, read:], **CLOSE)
        assert torch.equal(model(tokens, use_cache=False).logits, expected)
    other = infini.retrofit(tiny(name), "window", sinks=S, **options)
    with pytest.raises(InputError, match="written by other memory layers"):
        infini.load_memory(tmp_path / "memory", other)


def test_window_gradient_checkpointing_equals_plain_gradients(trained: PreTrainedModel) -> None:
    tokens, gradients = text(2, 40), []
    trained.train()
    for checkpointing in (False, True):
        if checkpointing:
            trained.gradient_checkpointing_enable()
        trained.zero_grad()
        torch.manual_seed(0)  # the same dropout
        trained(tokens, labels=tokens).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in infini_parameters(trained).items()})
    for key, gradient in gradients[0].items():
        # A layer with a window of its own retains no pair
        assert gradient.abs().max() > 0 or ".retained." in key, key
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-3, atol=1e-6)
    frozen = [p for n, p in trained.named_parameters() if "infini_window" not in n]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


@torch.no_grad()
def test_window_under_bfloat16_autocast(trained: PreTrainedModel) -> None:
    tokens = text(2, 40)
    expected = trained(tokens).logits
    with torch.autocast("cpu", torch.bfloat16):
        whole = trained(tokens).logits.float()
        first = trained(tokens[:, :8])
        rest = trained(tokens[:, 8:], **{CACHE: cache_of(first)}).logits.float()
    assert F.cosine_similarity(whole, expected, dim=-1).mean() > 0.98
    assert F.cosine_similarity(rest, expected[:, 8:], dim=-1).mean() > 0.98


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_base_is_rejected_unchanged(name: str) -> None:
    model = tiny(name)
    own = model.config._attn_implementation
    expected = model(text(1, 9)).logits
    with pytest.raises(InputError, match=f'method="window": {type(model).__name__} .*"parallel"'):
        infini.retrofit(model, "window", window=W)
    assert model.config._attn_implementation == own
    assert torch.equal(model(text(1, 9)).logits, expected)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        (r"layers must be between 0 and 2, got \[3\]", {"layers": [3]}),
        (
            r"window \+ sinks must be ≤ 256 \(the base's context of 256\), got 254 \+ 4",
            {"window": 254},
        ),
        ("window must be ≥ 1, got 0", {"window": 0}),
        ("window must be an integer ≥ 1, got 7.5", {"window": 7.5}),
        (
            r"\+ sinks must be ≤ 249 .* 7 of which retained pairs need",
            {"window": 246, "retained": 1},
        ),
        ("retained must be ≥ 0, got -1", {"retained": -1}),
        ("update must be one of 'linear', 'delta', 'gated_delta', 'none'", {"update": "some"}),
        ("segment_length is not an option of method='window'", {"segment_length": 8}),
        ("alpha is not an option of method='window'", {"alpha": 0.5}),
        ("sinks is not an option of method='parallel'", {"method": "parallel", "sinks": 2}),
        ("retained is not an option of method='parallel'", {"method": "parallel", "retained": 2}),
        (
            "update must be one of 'linear', 'delta', got 'gated_delta'",
            {"method": "parallel", "update": "gated_delta"},
        ),
    ],
)
def test_retrofit_rejects_invalid_window_options(message: str, options: dict[str, Any]) -> None:
    model = tiny("llama")
    with pytest.raises(InputError, match=message):
        infini.retrofit(model, **{"method": "window", **options})
    assert not hasattr(model, "infini_config")
