"""Attention of ours that starts as a base's own: its weights, its heads, its positions.

Exact within a segment, where the memory is empty; in later segments the gate, nearly
closed at first, adds what the memory holds.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.attention import InfiniAttention
from infini.base import attention_name
from infini.errors import InputError
from infini.local import Rotary
from infini.recall import Update

GATE = -2.0  # β at the start: the memory's share is 12 %; untrained it helps most there


def teacher_attention(
    model: PreTrainedModel, layer: nn.Module, segment_length: int, update: Update
) -> InfiniAttention:
    """What computes the same as `layer`'s attention does within a segment."""
    own = getattr(layer, attention_name(layer))
    config = model.config.get_text_config()
    window = getattr(own, "sliding_window", getattr(config, "sliding_window", None))
    if window is not None and window < segment_length:
        raise InputError(
            f"segment_length {segment_length}: longer than the base's sliding window, {window}"
        )
    weights, biases = _projections(model)(own)
    heads = config.num_attention_heads
    head_dim = weights["q"].shape[0] // heads
    rotary = rotary_of(model)
    ours = InfiniAttention(
        config.hidden_size,
        heads,
        segment_length,
        update,
        "softmax",
        "none" if rotary is None else "rope",
        num_kv_heads=weights["k"].shape[0] // head_dim,
        head_dim=head_dim,
        qkv_bias=biases["q"] is not None,
        out_bias=biases["o"] is not None,
        scale=own.scaling,
        rotary=rotary,
    )
    for name in ("q_norm", "k_norm"):
        if hasattr(own, name):
            setattr(ours, name, copy.deepcopy(getattr(own, name)))
    with torch.no_grad():
        for name, weight in weights.items():
            projection = getattr(ours, f"{name}_proj")
            projection.weight.copy_(weight)
            if (bias := biases[name]) is not None:
                projection.bias.copy_(bias)
        ours.beta.fill_(GATE)
    return ours


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


Tensors = tuple[dict[str, Tensor], dict[str, Tensor | None]]  # weights (out, in) and biases


def _separate(own: Any) -> Tensors:
    """Llama-like: a projection each."""
    projections = {name: getattr(own, f"{name}_proj") for name in "qkvo"}
    return (
        {name: p.weight for name, p in projections.items()},
        {name: p.bias for name, p in projections.items()},
    )


def _neox(own: Any) -> Tensors:
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


def _gpt2(own: Any) -> Tensors:
    """GPT-2: one projection, queries, keys and values in turn; weights are (in, out)."""
    weights = own.c_attn.weight.T.chunk(3)
    biases = own.c_attn.bias.chunk(3)
    return (
        dict(zip("qkvo", [*weights, own.c_proj.weight.T], strict=True)),
        dict(zip("qkvo", [*biases, own.c_proj.bias], strict=True)),
    )


ARCHITECTURES: dict[str, Callable[[nn.Module], Tensors]] = {
    "gpt_neox": _neox,
    "llama": _separate,
    "mistral": _separate,
    "qwen2": _separate,
    "qwen3": _separate,
    "gpt2": _gpt2,
}


def _projections(model: PreTrainedModel) -> Callable[[nn.Module], Tensors]:
    check_replaceable(model)
    return ARCHITECTURES[model.config.get_text_config().model_type]


def check_replaceable(model: PreTrainedModel) -> None:
    """InputError for an architecture whose layers are called in a way that we do not know."""
    kind = model.config.get_text_config().model_type
    if kind not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError(f'method="replace" knows {known}; for {kind} use method="parallel"')
