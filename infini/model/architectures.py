"""Architectures of transformers: names of their parts, and layout of their projections.

Also the name of a forward pass's cache, which transformers 5.24 changed from `past_key_values`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from infini.choices import REPLACEABLE
from infini.errors import InputError
from infini.memory.local import Rotary

# Attributes under which decoder layers have their attention
ATTENTION_NAMES = ("attention", "self_attn", "attn")

# Name of a model's cache in calls and outputs of the installed transformers
CACHE = (
    "cache" if "cache" in {f.name for f in fields(BaseModelOutputWithPast)} else ("past_key_values")
)
# Names by which a caller may give the cache
CACHE_NAMES = ("cache", "past_key_values")
# Names by which a layer's attention may be handed the cache
LAYER_CACHE_NAMES = (*CACHE_NAMES, "layer_past")
# Masked language models that have a causal class too
ENCODER_TYPES = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation", "xlnet"}


def take_cache(arguments: dict[str, Any]) -> Any:
    """Take the cache out of a call's keyword arguments.

    Args:
        arguments: keyword arguments of a call; both names of the cache are removed.

    Returns:
        The cache, None if none was given.

    Raises:
        InputError: If the two names hold two different caches.
    """
    given = [arguments.pop(name, None) for name in CACHE_NAMES]
    caches = [cache for cache in given if cache is not None]
    if any(cache is not caches[0] for cache in caches):
        raise InputError(f"{' and '.join(CACHE_NAMES)} are one argument, got two caches")
    return caches[0] if caches else None


def cache_of(output: Any) -> Any:
    """Return the cache in a model's output."""
    return getattr(output, CACHE)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of the model's decoder layers.

    Raises:
        InputError: If the model has no ModuleList of `num_hidden_layers` modules.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise InputError(f"{type(model).__name__}: no ModuleList of {depth} decoder layers found")


def is_encoder(model: PreTrainedModel) -> bool:
    """Return whether a token's hidden state depends on later tokens.

    Only families that began as encoders have a meaningful `is_decoder` in their config.
    """
    config = model.config.get_text_config()
    return config.model_type in ENCODER_TYPES and not getattr(config, "is_decoder", False)


def context_length(model: PreTrainedModel) -> int | None:
    """Return the longest text that the base can read at once, in tokens; None: no limit."""
    longest: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return longest


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of rows of the embedding."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


class OutputHead(NamedTuple):
    """Map from hidden states to logits: cap · tanh(scale · (hidden · weightᵀ + bias) / cap)."""

    # (V, d)
    weight: Tensor
    # (V,)
    bias: Tensor | None
    # Factor of the logits before the cap
    scale: float = 1.0
    # Soft cap of the logits; None: no cap
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the logits, (..., V), of hidden states, (..., d)."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


@torch.no_grad()
def output_head(model: PreTrainedModel) -> OutputHead:
    """Return the model's output head, checked once against the model's own logits.

    Args:
        model: a causal language model, retrofitted or not.

    Returns:
        The head; its tensors are the model's own.

    Raises:
        InputError: If the head is not linear, or the logits are computed in an unknown way.
    """
    own, config = model.get_output_embeddings(), model.config.get_text_config()
    if not isinstance(own, nn.Linear):
        raise InputError(f"{type(model).__name__}: the output head must be linear")
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    if config.model_type == "mpt":  # it ignores the key
        scale = 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    head = OutputHead(own.weight, own.bias, scale, getattr(config, "final_logit_softcapping", None))
    if model not in _CHECKED:
        tokens = torch.arange(4, device=model.device)[None]
        with torch.autocast(model.device.type, enabled=False):
            hidden = model.get_decoder()(tokens, use_cache=False).last_hidden_state
            logits, expected = head(hidden), model(tokens, use_cache=False).logits
        if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise InputError(
                f"{type(model).__name__}: its logits are computed in an unknown way, losses would "
                "be wrong"
            )
        _CHECKED.add(model)
    return head


_CHECKED: "WeakSet[PreTrainedModel]" = WeakSet()  # models whose head `output_head` has checked


def attention_name(layer: nn.Module) -> str:
    """Return the name of a decoder layer's attention module.

    Raises:
        InputError: If the layer has none of `ATTENTION_NAMES`.
    """
    for name in ATTENTION_NAMES:
        if isinstance(getattr(layer, name, None), nn.Module):
            return name
    raise InputError(f"{type(layer).__name__}: no attention under any of {ATTENTION_NAMES}")


@dataclass(frozen=True)
class BaseRotary:
    """A base's own rotary embedding, held so that a cast of what holds it does not reach it."""

    module: nn.Module

    def __call__(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of positions, (N, t, D) each, in the type of `x`."""
        cos, sin = self.module(x, position_ids)
        return cos, sin


def rotary_of(model: PreTrainedModel) -> Rotary | None:
    """Return the decoder's rotary embedding; None if it has none that only needs positions."""
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    if rotary is None:
        return None
    try:
        width = rotary(torch.zeros(1), torch.zeros(1, 1, dtype=torch.int64))[0].shape[-1]
    except (TypeError, AttributeError, KeyError):
        return None
    return BaseRotary(rotary) if width else None


# Weights (out, in) and biases of the projections, by "q", "k", "v", "o"
Projections = tuple[dict[str, Tensor], dict[str, Tensor | None]]


def _separate(own: Any) -> Projections:
    """Read the separate projections of Llama-like attention."""
    projections = {name: getattr(own, f"{name}_proj") for name in "qkvo"}
    return (
        {name: p.weight for name, p in projections.items()},
        {name: p.bias for name, p in projections.items()},
    )


def _neox(own: Any) -> Projections:
    """Read the fused projection of GPT-NeoX: head by head, its query, key and value."""

    def split(fused: Tensor | None) -> list[Any]:
        if fused is None:
            return [None] * 3
        heads = fused.unflatten(0, (-1, 3, own.head_size))  # (3·H·D, …) → (H, 3, D, …)
        return [part.flatten(0, 1) for part in heads.unbind(1)]

    weights, biases = split(own.query_key_value.weight), split(own.query_key_value.bias)
    return (
        dict(zip("qkvo", [*weights, own.dense.weight], strict=True)),
        dict(zip("qkvo", [*biases, own.dense.bias], strict=True)),
    )


def _gpt2(own: Any) -> Projections:
    """Read the fused projection of GPT-2: all queries, keys, values; weights are (in, out)."""
    weights = own.c_attn.weight.T.chunk(3)
    biases = own.c_attn.bias.chunk(3)
    return (
        dict(zip("qkvo", [*weights, own.c_proj.weight.T], strict=True)),
        dict(zip("qkvo", [*biases, own.c_proj.bias], strict=True)),
    )


PROJECTION_READERS: dict[str, Callable[[nn.Module], Projections]] = {
    "gpt_neox": _neox,
    "llama": _separate,
    "mistral": _separate,
    "qwen2": _separate,
    "qwen3": _separate,
    "gpt2": _gpt2,
}


def check_replaceable(model: PreTrainedModel) -> None:
    """Check that layers of this architecture can be replaced.

    Raises:
        InputError: If they cannot; the message names the architectures that can.
    """
    model_type = model.config.get_text_config().model_type
    if model_type not in PROJECTION_READERS:
        known = ", ".join(REPLACEABLE)
        raise InputError(
            f'method="replace" supports {known}; for {model_type} use method="parallel"'
        )


class BaseAttention(NamedTuple):
    """Attention of one of the base's layers, as far as `InfiniAttention` has the same."""

    # Weights of "q", "k", "v", "o", (out, in)
    weights: dict[str, Tensor]
    # Biases of the same, (out,)
    biases: dict[str, Tensor | None]
    # "q_norm" and "k_norm", per head, where the layer has them (Qwen3)
    norms: dict[str, nn.Module]
    # Factor of q·k in the softmax
    scale: float
    # Sliding window, in tokens; None: full attention
    window: int | None


def base_attention(model: PreTrainedModel, layer: nn.Module) -> BaseAttention:
    """Return the attention of a decoder layer.

    Args:
        model: the base.
        layer: one of its decoder layers.

    Raises:
        InputError: If the architecture is unknown.
    """
    check_replaceable(model)
    config, own = model.config.get_text_config(), getattr(layer, attention_name(layer))
    weights, biases = PROJECTION_READERS[config.model_type](own)
    norms = {name: getattr(own, name) for name in ("q_norm", "k_norm") if hasattr(own, name)}
    window = getattr(own, "sliding_window", getattr(config, "sliding_window", None))
    return BaseAttention(weights, biases, norms, own.scaling, window)
