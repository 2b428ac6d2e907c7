"""Initialise our attention from a layer of the base: its weights, heads and positions.

Within the first segment, where the memory is empty, the result is the base exactly; in later
segments the gate, nearly closed at first, mixes in what is read from the memory.
"""

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from infini.choices import Update
from infini.errors import InputError
from infini.memory.attention import HeadConfig, InfiniAttention
from infini.model.architectures import base_attention, rotary_of

# Initial β: the memory's share is sigmoid(−2) = 12 %, which is best before any training
GATE_INIT = -2.0


def attention_from_base(
    model: PreTrainedModel, layer: nn.Module, segment_length: int, update: Update
) -> InfiniAttention:
    """Return an attention that equals the layer's own within a segment.

    Args:
        model: the base.
        layer: the decoder layer to initialise from.
        segment_length: tokens of a segment.
        update: write rule of the memory.

    Raises:
        InputError: If the architecture is unknown, or the layer's sliding window is shorter than
            a segment.
    """
    own = base_attention(model, layer)
    if own.window is not None and own.window < segment_length:
        raise InputError(
            f"segment_length must be ≤ {own.window} (the base's sliding window), "
            f"got {segment_length}"
        )
    config, rotary = model.config.get_text_config(), rotary_of(model)
    head_dim = own.weights["q"].shape[0] // config.num_attention_heads
    attention = InfiniAttention(
        config.hidden_size,
        config.num_attention_heads,
        segment_length,
        update,
        "softmax",
        "none" if rotary is None else "rope",
        heads=HeadConfig(
            num_kv_heads=own.weights["k"].shape[0] // head_dim,
            head_dim=head_dim,
            qkv_bias=own.biases["q"] is not None,
            out_bias=own.biases["o"] is not None,
            scale=own.scale,
            rotary=rotary,
        ),
    )
    for name, norm in own.norms.items():
        setattr(attention, name, copy.deepcopy(norm))
    with torch.no_grad():
        for name, weight in own.weights.items():
            projection = getattr(attention, f"{name}_proj")
            projection.weight.copy_(weight)
            if (bias := own.biases[name]) is not None:
                projection.bias.copy_(bias)
        attention.beta.fill_(GATE_INIT)
    return attention
