"""Window attention of a layer, beside a memory of what has left the window.

A `WindowLayer` is a submodule of the base's own attention module, which stays in place and calls
it through the attention interface.

Shapes: B batch, H query heads, G key-value heads, T new tokens, D key width, V value width, W
window.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from infini.memory.associative import AssociativeMemory
from infini.memory.retained import (
    AttentionSpec,
    RetainedPairs,
    WindowPairs,
    retain_pinned,
    retained_attention,
)
from infini.memory.window import ChunkInfo, WindowState, window_attention
from infini.model.peft_adapters import active_module
from infini.model.window.attention import masked_attention
from infini.model.window.rotation import AngleMemo, Rotation

# Name of the `WindowLayer` in the base's attention module
SUBMODULE = "infini_window"


class WindowLayer(nn.Module):
    """Attention of one layer to sinks, window and memory.

    Args:
        layer_index: Index of the decoder layer.
        heads: Query heads, H.
        rotation: Rotary embedding of queries and keys; None: they have none.
        memory: Matrix memory; None: the layer has none.
        retained: Retained pairs; None: the layer has none.
        context: Tokens within which the base's positions are valid; None: any number.
        kept_window: The base's own sliding window, in tokens, if the layer keeps it; None: its
            window is the model's.
    """

    def __init__(
        self,
        layer_index: int,
        heads: int,
        rotation: Rotation | None,
        memory: AssociativeMemory | None,
        retained: RetainedPairs | None = None,
        context: int | None = None,
        kept_window: int | None = None,
    ):
        super().__init__()
        self.layer_index = layer_index
        self.heads = heads
        self.rotation = rotation
        self.memory = memory
        self.retained = retained
        self.context = context
        self.kept_window = kept_window

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        chunk: ChunkInfo,
        state: WindowState | None,
        spec: AttentionSpec,
    ) -> tuple[Tensor, WindowState]:
        """Attend to sinks, window and memory, and advance the state.

        Args:
            q: Queries without positions, (B, H, T, D).
            k: Keys without positions, (B, G, T, D).
            v: Values, (B, G, T, V).
            chunk: Number of past and new tokens per sample.
            state: State before the new tokens; None: there are no earlier tokens.
            spec: The base's attention in this layer.

        Returns:
            The output, (B, T, H, V), and the state after the new tokens.
        """
        chunk = chunk.with_window(self.kept_window)
        state = state or self.empty_state(k, v, chunk)
        joined = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        read, matrix = self._advance_matrix(q, joined, state, chunk)
        next_state = chunk.next_state(state, k, v, matrix)
        sinks = next_state.sink_keys, next_state.sink_values
        if self.retained is None:
            out = window_attention(
                q, joined, sinks, chunk, spec.attention, spec.rotate, spec.sliding_window
            )
        else:
            assert state.retained is not None
            out, retained = retained_attention(
                q, WindowPairs(*joined, *sinks), state.retained, chunk, spec, self.retained
            )
            next_state = next_state._replace(retained=retained)
        return out if read is None else out + read.transpose(1, 2).to(out.dtype), next_state

    def empty_state(self, k: Tensor, v: Tensor, chunk: ChunkInfo) -> WindowState:
        """Return the state before the first token; k and v give size, type and device."""
        if self.retained is None:
            return WindowState.empty(k, v, chunk, self.memory is not None)
        num_retained, policy = self.retained.num_retained, self.retained.policy
        return WindowState.empty(k, v, chunk, self.memory is not None, num_retained, policy)

    def import_kv(self, k: Tensor, v: Tensor, positions: Tensor, chunk: ChunkInfo) -> WindowState:
        """Return the state after a short text that the base itself has read.

        Args:
            k: The base's keys with their positions, (B, G, T, D).
            v: The base's values, (B, G, T, V).
            positions: Positions of the keys, (B, T).
            chunk: The text as the first chunk.

        Returns:
            The state. It retains no pair but a pinned one: scores begin at token W + S, after
            this text.
        """
        chunk = chunk.with_window(self.kept_window)
        if self.rotation is not None:
            k = self.rotation(k, -positions.to(k.device))
        state = self.empty_state(k, v, chunk)
        joined = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        # Any queries: only the written matrix is used
        any_q = k.repeat_interleave(self.heads // k.shape[1], 1)
        _, matrix = self._advance_matrix(any_q, joined, state, chunk)
        next_state = chunk.next_state(state, k, v, matrix)
        if state.retained is None:
            return next_state
        return next_state._replace(retained=retain_pinned(state.retained, k, v, chunk))

    def attention_spec(
        self,
        module: nn.Module,
        implementation: str,
        options: dict[str, Any],
        head_dim: int,
        angles: AngleMemo,
    ) -> AttentionSpec:
        """Describe the base's attention in this layer.

        Args:
            module: The base's attention module.
            implementation: Name of the base's own attention function.
            options: Further arguments of that function.
            head_dim: Width of a head, D.
            angles: Cos and sin that the layers of a pass share.
        """
        attention = masked_attention(module, implementation, options, head_dim)
        return AttentionSpec(
            attention,
            self.rotation and partial(self.rotation, memo=angles),
            options.get("scaling") or head_dim**-0.5,
            self.context,
            options.get("sliding_window"),
            is_softmax=isinstance(attention, partial),  # of `_sdpa`, as for most bases
        )

    def _advance_matrix(
        self, q: Tensor, joined: tuple[Tensor, Tensor], state: WindowState, chunk: ChunkInfo
    ) -> tuple[Tensor | None, Tensor]:
        """Return the matrix's part of the output, (B, H, T, V) or None, and the matrix afterwards.

        joined: keys and values of the window and the new tokens, (B, G, · + T, ·).
        """
        if self.memory is None or self.memory.mode == "off":
            return None, state.matrix
        T, W = chunk.num_tokens, chunk.window
        k, v = (x[:, :, -T - W + 1 :][:, :, :T] for x in joined)  # tokens that leave the window
        return self.memory(q, k, v, state.matrix, chunk.evicted_mask)


def window_layer(module: nn.Module) -> WindowLayer:
    """Return the `WindowLayer` in a base's attention module, peft's active one."""
    layer = active_module(getattr(module, SUBMODULE))
    assert isinstance(layer, WindowLayer)
    return layer


@dataclass
class WindowHandler:
    """Attention handler of a forward pass through the window."""

    chunk: ChunkInfo
    # State before the pass, by layer; a layer without one has no earlier tokens
    states: dict[int, WindowState] = field(default_factory=dict)
    # Gets the state after the pass, by layer; None: it is not needed
    next_states: dict[int, WindowState] | None = None
    angles: AngleMemo = field(default_factory=AngleMemo)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(
        self,
        module: nn.Module,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        implementation: str,
        options: dict[str, Any],
    ) -> tuple[Tensor, None]:
        """Attend by the module's `WindowLayer`; see `AttentionHandler.attend`."""
        layer = window_layer(module)
        spec = layer.attention_spec(module, implementation, options, q.shape[-1], self.angles)
        state = self.states.get(layer.layer_index)
        out, next_state = layer(q, k, v, self.chunk, state, spec)
        if self.next_states is not None:
            self.next_states[layer.layer_index] = next_state
        return out.contiguous(), None  # as transformers' own functions: AFMoE views it
