"""All that we know of architectures: what each calls its parts, how its projections are laid out.

Also the one name that transformers 5.24 changed: a forward pass's cache, `past_key_values`
before.
"""

from collections.abc import Callable
from dataclasses import fields
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

ATTENTION_NAMES = ("attention", "self_attn", "attn")  # of a decoder layer's attention

# What the installed transformers calls a model's cache, in calls and outputs.
CACHE = (
    "cache" if "cache" in {f.name for f in fields(BaseModelOutputWithPast)} else ("past_key_values")
)
# Families of models that fill gaps, which have a causal class too
ENCODERS = {*MODEL_FOR_MASKED_LM_MAPPING_NAMES, "bert-generation", "xlnet"}
CACHES = ("cache", "past_key_values")  # what callers may call it
LAYER_CACHES = (*CACHES, "layer_past")  # what a layer's attention is handed it as


def take_cache(arguments: dict[str, Any]) -> Any:
    """Take the cache out of a call's arguments, by whichever name it was given; None without.

    InputError where the two names hold two.
    """
    given = [arguments.pop(name, None) for name in CACHES]
    found = [cache for cache in given if cache is not None]
    if any(cache is not found[0] for cache in found):
        raise InputError(f"{' and '.join(CACHES)}: two names of one argument, give one cache")
    return found[0] if found else None


def cache_of(output: Any) -> Any:
    """The cache in a model's output."""
    return getattr(output, CACHE)


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The ModuleList of the model's decoder layers; InputError where none is found."""
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise InputError(f"{type(model).__name__}: no ModuleList of {depth} decoder layers found")


def is_encoder(model: PreTrainedModel) -> bool:
    """Whether a token's hidden state depends on later ones.

    A config's `is_decoder` says so of families that began as encoders, and nothing of others.
    """
    config = model.config.get_text_config()
    return config.model_type in ENCODERS and not getattr(config, "is_decoder", False)


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that the base can read at once; None where its config does not limit them."""
    longest: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return longest


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many tokens the base tells apart."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows


class Head(NamedTuple):
    """From hidden states to logits: cap · tanh(scale · (hidden · weightᵀ + bias) / cap)."""

    weight: Tensor  # (V, d)
    bias: Tensor | None  # (V,)
    scale: float = 1.0
    softcap: float | None = None  # None: the logits as they are

    def __call__(self, hidden: Tensor) -> Tensor:
        """The logits, (..., V), of (..., d)."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return logits if self.softcap is None else self.softcap * (logits / self.softcap).tanh()


@torch.no_grad()
def output_head(model: PreTrainedModel) -> Head:
    """The frozen head, as the model itself uses it.

    InputError where the model does something to its logits that we do not know.
    """
    own, config = model.get_output_embeddings(), model.config.get_text_config()
    if not isinstance(own, nn.Linear):
        raise InputError(f"{type(model).__name__}: no linear head over a vocabulary")
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    if config.model_type == "mpt":  # which has the key, and does not look at it
        scale = 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    head = Head(own.weight, own.bias, scale, getattr(config, "final_logit_softcapping", None))
    if model not in _CHECKED:
        tokens = torch.arange(4, device=model.device)[None]
        with torch.autocast(model.device.type, enabled=False):
            hidden = model.get_decoder()(tokens, use_cache=False).last_hidden_state
            ours, theirs = head(hidden), model(tokens, use_cache=False).logits
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise InputError(
                f"{type(model).__name__}: turns hidden states into logits in a way that infini "
                "does not know, its losses would be wrong"
            )
        _CHECKED.add(model)
    return head


_CHECKED: "WeakSet[PreTrainedModel]" = WeakSet()  # models whose head is known to be ours


def attention_name(layer: nn.Module) -> str:
    """The attribute under which a decoder layer keeps its attention; InputError without one."""
    for name in ATTENTION_NAMES:
        if isinstance(getattr(layer, name, None), nn.Module):
            return name
    raise InputError(f"{type(layer).__name__}: no attention under any of {ATTENTION_NAMES}")


def rotary_of(model: PreTrainedModel) -> Rotary | None:
    """The decoder's rotary embedding, if it has one that positions alone decide."""
    rotary = getattr(model.get_decoder(), "rotary_emb", None)
    if rotary is None:
        return None
    try:
        width = rotary(torch.zeros(1), torch.zeros(1, 1, dtype=torch.int64))[0].shape[-1]
    except (TypeError, AttributeError, KeyError):
        return None
    return rotary if width else None


# Of q, k, v and o: weights (out, in), and biases
Projections = tuple[dict[str, Tensor], dict[str, Tensor | None]]


def _separate(own: Any) -> Projections:
    """Llama-like: a projection each."""
    projections = {name: getattr(own, f"{name}_proj") for name in "qkvo"}
    return (
        {name: p.weight for name, p in projections.items()},
        {name: p.bias for name, p in projections.items()},
    )


def _neox(own: Any) -> Projections:
    """GPT-NeoX: one projection, for each head its query, key and value in turn."""

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
    """GPT-2: one projection, queries, keys and values in turn; weights are (in, out)."""
    weights = own.c_attn.weight.T.chunk(3)
    biases = own.c_attn.bias.chunk(3)
    return (
        dict(zip("qkvo", [*weights, own.c_proj.weight.T], strict=True)),
        dict(zip("qkvo", [*biases, own.c_proj.bias], strict=True)),
    )


PROJECTIONS: dict[str, Callable[[nn.Module], Projections]] = {
    "gpt_neox": _neox,
    "llama": _separate,
    "mistral": _separate,
    "qwen2": _separate,
    "qwen3": _separate,
    "gpt2": _gpt2,
}


def check_replaceable(model: PreTrainedModel) -> None:
    """InputError for an architecture whose layers are called in a way that we do not know."""
    kind = model.config.get_text_config().model_type
    if kind not in PROJECTIONS:
        known = ", ".join(REPLACEABLE)
        raise InputError(f'method="replace" knows {known}; for {kind} use method="parallel"')


class OwnAttention(NamedTuple):
    """A layer's attention as far as one of ours can do the same."""

    weights: dict[str, Tensor]  # of q, k, v, o: (out, in)
    biases: dict[str, Tensor | None]
    norms: dict[str, nn.Module]  # q_norm and k_norm, per head, where it has them (Qwen3)
    scale: float  # of the softmax's scores
    window: int | None  # tokens that it looks back at most; None: all


def own_attention(model: PreTrainedModel, layer: nn.Module) -> OwnAttention:
    """What a decoder layer attends with; InputError for an unknown architecture."""
    check_replaceable(model)
    config, own = model.config.get_text_config(), getattr(layer, attention_name(layer))
    weights, biases = PROJECTIONS[config.model_type](own)
    norms = {name: getattr(own, name) for name in ("q_norm", "k_norm") if hasattr(own, name)}
    window = getattr(own, "sliding_window", getattr(config, "sliding_window", None))
    return OwnAttention(weights, biases, norms, own.scaling, window)
