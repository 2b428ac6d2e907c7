"""The attention that a text's queries pay to earlier tokens, by block: what an oracle knows.

Attention is squared: a pair that one query needs counts more than one that all look at a little.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infini.choices import RETENTION_BLOCK
from infini.model.window.attention import evaluation_mode
from infini.model.window.full_attention import LayerInputs, causal_mask, record_full_attention


def future_attention(model: PreTrainedModel, tokens: Tensor) -> dict[int, Tensor]:
    """Return the squared attention that a block's queries pay to every token, by layer.

    Args:
        model: A window model; the attention is that of its base, over the whole text.
        tokens: (B, T), T at most the base's context.

    Returns:
        (B, G, N, T) by layer, float32, for N blocks of RETENTION_BLOCK queries and G key-value
        heads; the sum over queries, the mean over a group's query heads. 2.1 MB a head with 4,096
        tokens.
    """
    attention: dict[int, Tensor] = {}

    def record(inputs: LayerInputs) -> None:
        attention[inputs.layer_index] = _block_attention(inputs)

    with evaluation_mode(model):
        record_full_attention(model, tokens.to(model.device), record)
    return attention


def _block_attention(inputs: LayerInputs) -> Tensor:
    """Return the squared attention of a layer, (B, G, N, T)."""
    q, k = replace(inputs, q=inputs.q.float(), k=inputs.k.float()).rotated()
    (batch, _, length, _), kv_heads = q.shape, k.shape[1]
    q = q.unflatten(1, (kv_heads, -1)) * inputs.spec.scale  # (B, G, r, T, D)
    num_blocks = -(-length // RETENTION_BLOCK)
    received = q.new_zeros(batch, kv_heads, num_blocks, length)
    positions = torch.arange(length, device=q.device)
    for block, own in enumerate(positions.split(RETENTION_BLOCK)):
        mask = causal_mask(own, inputs.spec.sliding_window)
        end = mask.shape[1]
        scores = q[:, :, :, own] @ k[:, :, None, :end].mT  # (B, G, r, C, end)
        weights = scores.masked_fill_(~mask, -torch.inf).softmax(-1)
        received[:, :, block, :end] = weights.square().sum(3).mean(2)
    return received
