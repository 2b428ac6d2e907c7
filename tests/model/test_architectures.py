"""Parts of every architecture, output heads, and the name of the cache."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPTNeoXForCausalLM,
    GraniteConfig,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

import infini
from architectures import CONFIGS, SIZES, L, text, tiny
from infini.errors import InputError
from infini.model.architectures import (
    CACHE,
    CACHE_NAMES,
    attention_name,
    base_attention,
    cache_of,
    context_length,
    decoder_layers,
    output_head,
    rotary_of,
    take_cache,
)

BLOOM = BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=4)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_parts_of_every_architecture(name: str) -> None:
    model = tiny(name)
    layers = decoder_layers(model)
    assert len(layers) == 3
    assert context_length(model) == 256
    hidden = model.get_decoder()(text(2, 5)).last_hidden_state
    torch.testing.assert_close(output_head(model)(hidden), model(text(2, 5)).logits)
    assert (rotary_of(model) is None) == (name == "gpt2")
    attention = getattr(layers[1], attention_name(layers[1]))
    seen: list[tuple[Tensor, Tensor]] = []
    attention.register_forward_hook(
        lambda _, args, kwargs, out: seen.append((kwargs.get("hidden_states", *args), out[0])),
        with_kwargs=True,
    )
    model(text(1, 1))  # of one token, attention is its value alone
    ((hidden, out),) = seen
    own = base_attention(model, layers[1])
    value = F.linear(hidden, own.weights["v"], own.biases["v"])
    heads = value.unflatten(-1, (-1, 8 if name == "qwen3" else 4))
    groups = own.weights["q"].shape[0] // own.weights["v"].shape[0]
    heads = heads.repeat_interleave(groups, -2).flatten(-2)
    torch.testing.assert_close(F.linear(heads, own.weights["o"], own.biases["o"]), out)
    assert own.norms.keys() == ({"q_norm", "k_norm"} if name == "qwen3" else set())
    assert own.scale == (8 if name == "qwen3" else 4) ** -0.5
    assert own.window == (4096 if name == "mistral" else None)


HEADS = {
    "scaled": (CohereConfig(**SIZES, logit_scale=0.25, pad_token_id=0), (0.25, None)),
    "divided": (GraniteConfig(**SIZES, logits_scaling=5.0), (0.2, None)),
    "capped": (Gemma2Config(**SIZES, head_dim=4, final_logit_softcapping=0.5), (1.0, 0.5)),
}


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_output_head_equals_the_models_logits(kind: str) -> None:
    config, expected = HEADS[kind]
    model = with_large_logits(config)
    head = output_head(model)
    assert (head.scale, head.softcap) == expected
    hidden = model.get_decoder()(text(2, 9)).last_hidden_state
    torch.testing.assert_close(head(hidden), model(text(2, 9)).logits)
    plain = head._replace(scale=1.0, softcap=None)
    assert not torch.allclose(plain(hidden), head(hidden), rtol=0.1)


@pytest.mark.parametrize("scale", ["inv_sqrt_d_model", 0.5])
@torch.no_grad()
def test_output_head_ignores_the_logit_scale_of_mpt(scale: str | float) -> None:
    model = with_large_logits(
        MptConfig(d_model=16, n_heads=4, n_layers=2, vocab_size=50, logit_scale=scale)
    )
    hidden = model.get_decoder()(text(2, 9)).last_hidden_state
    assert torch.equal(output_head(model)(hidden), model(text(2, 9)).logits)


def with_large_logits(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model with logits large enough that a cap matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.get_output_embeddings().weight.data.normal_()
    return model


def test_output_head_rejects_unknown_heads() -> None:
    class Odd(GPTNeoXForCausalLM):
        def forward(self, *args: object, **kwargs: object) -> object:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits + 0.01
            return out

    with pytest.raises(InputError, match="Odd: its logits are computed in an unknown way"):
        output_head(Odd(CONFIGS["gpt_neox"]).eval())
    model = tiny("gpt_neox")
    model.set_output_embeddings(nn.Identity())
    with pytest.raises(InputError, match="GPTNeoXForCausalLM: the output head must be linear"):
        output_head(model)


@torch.no_grad()
def test_parallel_supports_unknown_architectures_and_replace_does_not() -> None:
    model, tokens = BloomForCausalLM(BLOOM).eval(), text(2, 3 * L)
    within = model(tokens[:, :L]).logits
    infini.retrofit(model, "parallel", [1], L)
    assert torch.equal(model(tokens[:, :L]).logits, within)
    assert model(tokens).logits.shape == (2, 3 * L, 50)
    infini.remove(model)
    with pytest.raises(InputError, match=r'method="replace" supports gpt_neox, .* for bloom use'):
        infini.retrofit(model, "replace", [1], L)
    with pytest.raises(InputError, match="the base has no rotary embedding"):
        infini.retrofit(model, "parallel", [1], L, position="rope")


@torch.no_grad()
def test_model_takes_the_cache_by_its_installed_and_its_old_name(
    retrofitted: Callable[[str, str], PreTrainedModel],
) -> None:
    model, tokens = retrofitted("llama", "parallel"), text(2, 2 * L)
    whole = model(tokens, use_cache=False).logits[:, L + 3 :]
    for name in dict.fromkeys([CACHE, "past_key_values"]):
        out = model(tokens[:, : L + 3])
        assert getattr(out, name) is cache_of(out)
        logits = model(tokens[:, L + 3 :], **{name: getattr(out, name)}).logits
        torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)


def test_take_cache_by_either_name() -> None:
    for name in CACHE_NAMES:
        arguments = dict.fromkeys(CACHE_NAMES) | {name: "given", "other": 1}
        assert take_cache(arguments) == "given"
        assert arguments == {"other": 1}
    assert take_cache({}) is None
