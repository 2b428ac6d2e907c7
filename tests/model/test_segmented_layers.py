"""Replaced layers and parallel adapters."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from architectures import CONFIGS, L, text, tiny
from infini.model.architectures import cache_of, decoder_layers
from infini.model.modules import frozen_layers, infini_parameters, segmented_layers

Retrofitted = Callable[[str, str], PreTrainedModel]


def test_gradient_checkpointing_changes_no_gradient(any_model: PreTrainedModel) -> None:
    tokens = text(2, 3 * L)
    for module in any_model.modules():
        if isinstance(module, torch.nn.Dropout):  # only gpt2 has dropout
            module.p = 0.0
    trained = [p for p in any_model.parameters() if p.requires_grad]
    any_model.train()
    plain = any_model(tokens, labels=tokens, use_cache=False)
    expected = torch.autograd.grad(plain.loss, trained)
    any_model.gradient_checkpointing_enable()
    again = any_model(tokens, labels=tokens)  # without a cache, as the base does it
    assert cache_of(again) is None
    torch.testing.assert_close(torch.autograd.grad(again.loss, trained), expected)


@torch.no_grad()
def test_autocast_error_is_at_most_that_of_the_base(
    retrofitted: Retrofitted,
) -> None:
    tokens = text(2, 3 * L)

    def error(model: PreTrainedModel, tokens: Tensor) -> float:
        exact = model(tokens).logits
        with torch.autocast("cpu", torch.bfloat16):
            return (model(tokens).logits.float() - exact).square().mean().sqrt().item()

    # Our attention runs in float32, the other layers as the base's
    allowed = error(tiny("llama"), tokens)
    model = retrofitted("llama", "replace_teacher")
    assert 0 < error(model, tokens) <= 1.5 * allowed
    state = cache_of(model.bfloat16()(tokens)).memory[0]
    assert state.matrix.dtype == torch.float32
    assert state.keys.dtype == torch.bfloat16


@pytest.mark.parametrize("name", CONFIGS)
def test_finders_of_added_and_frozen_modules(name: str, retrofitted: Retrofitted) -> None:
    base = decoder_layers(tiny(name))
    parallel, replaced = retrofitted(name, "parallel"), retrofitted(name, "replace_teacher")
    assert list(segmented_layers(parallel)) == [0, 2]
    assert list(segmented_layers(replaced)) == [0, 1]
    for model, frozen in ((parallel, [0, 1, 2]), (replaced, [2])):  # those of the base that are run
        layers = frozen_layers(model)
        assert len(layers) == len(frozen)
        for layer, index in zip(layers, frozen, strict=True):
            own = dict(layer.named_parameters())
            assert own.keys() == dict(base[index].named_parameters()).keys()
            assert all(torch.equal(own[n], p) for n, p in base[index].named_parameters())
    assert segmented_layers(parallel)[2].learned_scalars() == {"alpha": pytest.approx(0.7)}
    assert segmented_layers(replaced)[1].learned_scalars() == {}
    assert {"layers.0.alpha", "layers.2.norm.bias"} < infini_parameters(parallel).keys()
    assert not any("original" in key for key in infini_parameters(replaced))
