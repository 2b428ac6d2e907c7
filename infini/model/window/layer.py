"""A layer's attention as a window, beside a memory of what has left it.

`WindowLayer` stands as a submodule in the base's own attention module, which stays what it is and
calls it by way of the attention interface.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.memory.associative import AssociativeMemory
from infini.memory.retained import AttentionSpec, RetainedPairs, WindowPairs, retained_attention
from infini.memory.window import Attention, ChunkInfo, WindowState, window_attention
from infini.model.architectures import decoder_layers
from infini.model.window.attention import blockwise
from infini.model.window.rotation import QKV, Rotation

PLACE = "infini_window"  # its name in the attention module


class WindowLayer(nn.Module):
    """What a layer's attention does instead; rotation, memory, kept: None where it has none.

    heads: H; context: of the base, in tokens.
    """

    def __init__(
        self,
        layer_index: int,
        heads: int,
        rotation: Rotation | None,
        memory: AssociativeMemory | None,
        kept: RetainedPairs | None = None,
        context: int | None = None,
    ):
        super().__init__()
        self.layer_index = layer_index
        self.heads = heads
        self.rotation = rotation
        self.memory = memory
        self.retained = kept
        self.context = context

    def forward(
        self,
        qkv: QKV,
        span: ChunkInfo,
        state: WindowState | None,
        attention: Attention,
        scale: float,
        limit: int | None = None,
    ) -> tuple[Tensor, WindowState]:
        """(B, T, H, V), and the state after it; qkv: without positions, (B, H or G, T, ·) each.

        scale: of q·k. limit: the base's own window, in tokens, where it has one.
        """
        q, k, v = qkv
        state = state or self.empty(k, v, span)
        joined = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        added, matrix = self._remember(q, joined, state, span)
        after = span.next_state(state, k, v, matrix)
        sinks = after.sink_keys, after.sink_values
        if self.retained is None:
            out = window_attention(q, joined, sinks, span, attention, self.rotation, limit)
        else:
            assert state.retained is not None
            reader = AttentionSpec(attention, self.rotation, scale, self.context, limit)
            out, kept = retained_attention(
                q, WindowPairs(*joined, *sinks), state.retained, span, reader, self.retained
            )
            after = after._replace(retained=kept)
        return out if added is None else out + added.transpose(1, 2).to(out.dtype), after

    def empty(self, k: Tensor, v: Tensor, span: ChunkInfo) -> WindowState:
        """The state before the first token."""
        if self.retained is None:
            return WindowState.empty(k, v, span, self.memory is not None)
        count, policy = self.retained.num_retained, self.retained.policy
        return WindowState.empty(k, v, span, self.memory is not None, count, policy)

    def absorb(self, k: Tensor, v: Tensor, positions: Tensor, span: ChunkInfo) -> WindowState:
        """The state after keys, rotated by `positions`, (B, T), and values that the base made."""
        if self.rotation is not None:
            k = self.rotation(k, -positions.to(k.device))
        state = self.empty(k, v, span)
        joined = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        asked = k.repeat_interleave(self.heads // k.shape[1], 1)  # nobody asks: any queries do
        # No pair has left so early that any attention to it counts: none is kept
        return span.next_state(state, k, v, self._remember(asked, joined, state, span)[1])

    def _remember(
        self, q: Tensor, joined: tuple[Tensor, Tensor], state: WindowState, span: ChunkInfo
    ) -> tuple[Tensor | None, Tensor]:
        """What the memory adds, (B, H, T, V), and the memory when the tokens have left."""
        if self.memory is None or self.memory.use == "off":
            return None, state.matrix
        k, v = (
            x[:, :, -span.num_tokens - span.window + 1 :][:, :, : span.num_tokens] for x in joined
        )
        return self.memory(q, k, v, state.matrix, span.evicted_mask)


@dataclass
class WindowRun:
    """A forward pass with a window; a kept state is moved on."""

    span: ChunkInfo
    states: dict[int, WindowState] = field(default_factory=dict)  # before the pass
    after: dict[int, WindowState] | None = None  # filled; None: nobody asks

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(
        self,
        module: nn.Module,
        qkv: QKV,
        implementation: str,
        options: dict[str, Any],
    ) -> tuple[Tensor, None]:
        """What the attention interface calls."""
        layer: WindowLayer = getattr(module, PLACE)
        attention = blockwise(module, implementation, options, qkv[0].shape[-1])
        limit = options.get("sliding_window")
        state = self.states.get(layer.layer_index)
        scale = options.get("scaling") or qkv[0].shape[-1] ** -0.5
        out, after = layer(qkv, self.span, state, attention, scale, limit)
        if self.after is not None:
            self.after[layer.layer_index] = after
        return out, None


def window_layers(model: PreTrainedModel) -> dict[int, WindowLayer]:
    """By layer; empty for a model without a window."""
    return {
        module.layer_index: module
        for layer in decoder_layers(model)
        for module in layer.modules()
        if isinstance(module, WindowLayer)
    }
