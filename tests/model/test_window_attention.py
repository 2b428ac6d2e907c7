"""The hook into a base's attention: installed, uninstalled, and without effect by itself."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from architectures import WINDOWED, text, tiny
from infini.errors import InputError
from infini.model.window.attention import (
    PREFIX,
    _sdpa,
    attention_function,
    attention_kwargs,
    evaluation_mode,
    install_attention,
    masked_attention,
    uninstall_attention,
)

SHAPES = {"llama": (4, 2, 4), "gemma2": (4, 2, 8)}  # H, G, D


class CountingHandler:
    """Attends to nothing and records the layers."""

    def __init__(self) -> None:
        self.layers: list[int] = []

    def attend(
        self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, implementation: str, options: Any
    ) -> tuple[Tensor, None]:
        self.layers.append(module.layer_idx)
        return torch.zeros_like(q.transpose(1, 2)), None


@torch.no_grad()
def test_install_attention_has_no_effect_without_a_handler() -> None:
    model, tokens = tiny("llama"), text(2, 9)
    own, expected = model.config._attn_implementation, model(tokens).logits
    install_attention(model)
    assert model.config._attn_implementation == PREFIX + own
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    assert torch.equal(model(tokens).logits, expected)
    padded = model(tokens, attention_mask=mask).logits
    handler = CountingHandler()
    model(tokens, **attention_kwargs(handler, model.device), use_cache=False)
    assert handler.layers == [0, 1, 2]
    lost = torch.ones(1, 1, 1, 0, dtype=torch.bool)  # without its attribute
    with pytest.raises(InputError, match="the attention handler was lost"):
        model(tokens, attention_mask=lost)
    uninstall_attention(model)
    uninstall_attention(model)
    assert model.config._attn_implementation == own
    assert torch.equal(model(tokens, attention_mask=mask).logits, padded)


def test_install_attention_on_models_that_share_a_config() -> None:
    config = copy.deepcopy(WINDOWED["llama"])
    first, second = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    own = config._attn_implementation
    install_attention(first)
    install_attention(second)
    assert second.config._attn_implementation == PREFIX + (own or "sdpa")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_masked_attention_equals_softmax_under_any_mask(name: str, implementation: str) -> None:
    model, (H, G, D) = tiny(name), SHAPES[name]
    attention, cap = model.model.layers[1].self_attn, None
    options: dict[str, Any] = {"scaling": None, "sliding_window": 3, "is_causal": True}
    if name == "gemma2":
        cap = options["softcap"] = model.config.attn_logit_softcapping
    q, k, v = (torch.randn(5, heads, n, D) for heads, n in ((H, 6), (G, 9), (G, 9)))
    mask = torch.rand(5, 1, 6, 9) < 0.5
    mask[..., 0] = True
    out = masked_attention(attention, implementation, options, D)(q, k, v, mask)
    keys, values = (x.repeat_interleave(H // G, 1) for x in (k, v))
    scores = q @ keys.mT / D**0.5
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    expected = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values
    torch.testing.assert_close(out, expected.transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [4, 10], ids=["as_values", "wider"])
def test_fused_sdpa_equals_transformers_outputs_and_gradients(width: int) -> None:
    attention = tiny("llama").model.layers[1].self_attn
    leaves = [
        torch.randn(5, heads, n, w, requires_grad=True)
        for heads, n, w in ((4, 6, width), (2, 9, width), (2, 9, 4))
    ]
    mask = torch.rand(5, 1, 6, 9) < 0.5
    mask[..., 0] = True
    options: dict[str, Any] = {"scaling": 0.3, "dropout": 0.0, "use_cache": False}
    fused = masked_attention(attention, "sdpa", {**options, "position_ids": None}, width)
    assert isinstance(fused, partial)
    assert fused.func is _sdpa
    added = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    outs = [
        fused(*leaves, mask),
        attention_function("sdpa", attention)(attention, *leaves, mask, **options)[0],
        attention_function("eager", attention)(attention, *leaves, added, **options)[0],
    ]
    weights = torch.randn_like(outs[0])
    gradients = [torch.autograd.grad((out * weights).sum(), leaves) for out in outs]
    for out, gradient in zip(outs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(out, outs[0])
        torch.testing.assert_close(gradient, gradients[0])
    elsewhere = fused(*(x.detach().to("meta") for x in leaves), mask.to("meta"))
    assert elsewhere.shape == outs[0].shape


@pytest.mark.parametrize("special", [{"dropout": 0.1}, {"softcap": 50.0}, {"s_aux": None}])
def test_masked_attention_leaves_special_options_to_the_base(
    special: dict[str, Any],
) -> None:
    attention = tiny("llama").model.layers[1].self_attn
    assert not isinstance(
        masked_attention(attention, "sdpa", {"scaling": 0.3, **special}, 4), partial
    )


def test_evaluation_mode_restores_every_module() -> None:
    model = tiny("llama").train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
