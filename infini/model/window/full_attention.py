"""A pass of the base's own full attention that shows every layer's queries and keys.

What `fit_policy` records of a text, and the attention that an oracle knows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.memory.retained import AttentionSpec
from infini.model.architectures import CACHE
from infini.model.window.attention import attention_kwargs
from infini.model.window.layer import window_layer
from infini.model.window.rotation import AngleMemo

QUERIES_AT_A_TIME = 512


@dataclass(frozen=True)
class LayerInputs:
    """Queries and keys of a layer, without positions."""

    layer_index: int
    """Decoder layer, from 0"""
    q: Tensor
    """Queries, (B, H, T, D)"""
    k: Tensor
    """Keys, (B, G, T, D)"""
    spec: AttentionSpec
    """The base's attention in this layer"""

    def rotated(self) -> tuple[Tensor, Tensor]:
        """Return queries and keys with their positions."""
        if self.spec.rotate is None:
            return self.q, self.k
        positions = torch.arange(self.q.shape[2], device=self.q.device)[None]
        return self.spec.rotate(self.q, positions), self.spec.rotate(self.k, positions)


def causal_mask(positions: Tensor, sliding_window: int | None) -> Tensor:
    """Return which tokens queries attend to, as True: (C, end), up to the last query's own.

    Args:
        positions: Of the queries, ascending, (C,).
        sliding_window: The layer's own window, in tokens; None: it has none.
    """
    end = int(positions[-1]) + 1
    distance = positions[:, None] - torch.arange(end, device=positions.device)
    mask = distance >= 0
    return mask if sliding_window is None else mask & (distance < sliding_window)


@dataclass
class FullAttentionHandler:
    """Attention handler that attends in full and calls `record` for every layer."""

    record: Callable[[LayerInputs], None]
    angles: AngleMemo = field(default_factory=AngleMemo)

    def attend(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        implementation: str,
        options: dict[str, Any],
    ) -> tuple[Tensor, None]:
        """Attend as the base does; see `AttentionHandler.attend`."""
        layer = window_layer(module)
        spec = layer.attention_spec(module, implementation, options, q.shape[-1], self.angles)
        inputs = LayerInputs(layer.layer_index, q, k, spec)
        self.record(inputs)
        q, k = inputs.rotated()
        positions, outs = torch.arange(q.shape[2], device=q.device), []
        for own in positions.split(QUERIES_AT_A_TIME):  # later keys are masked: do not read them
            mask = causal_mask(own, spec.sliding_window)
            end = mask.shape[1]
            mask = mask[None, None].expand(len(q), -1, -1, -1)
            outs.append(spec.attention(q[:, :, own], k[:, :, :end], v[:, :, :end], mask))
        return torch.cat(outs, 1), None  # (B, T, H, V)


@torch.no_grad()
def record_full_attention(
    model: PreTrainedModel, tokens: Tensor, record: Callable[[LayerInputs], None]
) -> None:
    """Read texts with the base's full attention, and record every layer's queries and keys.

    Args:
        model: A window model; its windows and memory are not used.
        tokens: (B, T), T at most the base's context.
        record: Called for every layer in order.
    """
    batch, length = tokens.shape
    handler = FullAttentionHandler(record)
    decoder = model.get_decoder()
    learned = decoder.learned_positions is not None
    positions = torch.arange(length, device=tokens.device)[None] * int(learned)
    kwargs = attention_kwargs(handler, tokens.device) | {CACHE: None, "use_cache": False}
    decoder(input_ids=tokens, position_ids=positions.expand(batch, -1), **kwargs)
