"""Attention of ours that starts as a base's own: its weights, its heads, its positions.

Exact within a segment, where the memory is empty; in later segments the gate, nearly
closed at first, adds what the memory holds.
"""

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from infini.choices import Update
from infini.errors import InputError
from infini.memory.attention import Heads, InfiniAttention
from infini.model.architectures import base_attention, rotary_of

GATE = -2.0  # β at the start: the memory's share is 12 %; untrained it helps most there


def attention_from_base(
    model: PreTrainedModel, layer: nn.Module, segment_length: int, update: Update
) -> InfiniAttention:
    """What computes the same as `layer`'s attention does within a segment.

    InputError for an architecture that we do not know, or a window shorter than a segment.
    """
    own = base_attention(model, layer)
    if own.window is not None and own.window < segment_length:
        raise InputError(
            f"segment_length {segment_length}: longer than the base's sliding window, {own.window}"
        )
    config, rotary = model.config.get_text_config(), rotary_of(model)
    head_dim = own.weights["q"].shape[0] // config.num_attention_heads
    ours = InfiniAttention(
        config.hidden_size,
        config.num_attention_heads,
        segment_length,
        update,
        "softmax",
        "none" if rotary is None else "rope",
        heads=Heads(
            num_kv_heads=own.weights["k"].shape[0] // head_dim,
            head_dim=head_dim,
            qkv_bias=own.biases["q"] is not None,
            out_bias=own.biases["o"] is not None,
            scale=own.scale,
            rotary=rotary,
        ),
    )
    for name, norm in own.norms.items():
        setattr(ours, name, copy.deepcopy(norm))
    with torch.no_grad():
        for name, weight in own.weights.items():
            projection = getattr(ours, f"{name}_proj")
            projection.weight.copy_(weight)
            if (bias := own.biases[name]) is not None:
                projection.bias.copy_(bias)
        ours.beta.fill_(GATE)
    return ours
