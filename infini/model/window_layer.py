"""A layer's attention as a window, beside a memory of what has left it.

`WindowLayer` stands as a submodule in the base's own attention module, which stays what it is and
calls it by way of the attention interface.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.memory.associative import AssociativeMemory
from infini.memory.eviction import KeptState, Sight
from infini.memory.kept import KeptPairs, Pairs, Reader, kept_attention
from infini.memory.window import Attention, Span, WindowState, window_attention
from infini.model.architectures import decoder_layers
from infini.model.interface import blockwise
from infini.model.rotation import QKV, Rotation

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
        kept: KeptPairs | None = None,
        context: int | None = None,
    ):
        super().__init__()
        self.layer_index = layer_index
        self.heads = heads
        self.rotation = rotation
        self.memory = memory
        self.kept = kept
        self.context = context

    def forward(
        self,
        qkv: QKV,
        span: Span,
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
        after = span.after(state, k, v, matrix)
        sinks = after.sink_keys, after.sink_values
        if self.kept is None:
            out = window_attention(q, joined, sinks, span, attention, self.rotation, limit)
        else:
            reader = Reader(attention, self.rotation, scale)
            out, kept = self._with_kept(q, joined, after, state, span, reader, limit)
            after = after._replace(kept=kept)
        return out if added is None else out + added.transpose(1, 2).to(out.dtype), after

    def _with_kept(
        self,
        q: Tensor,
        joined: tuple[Tensor, Tensor],
        after: WindowState,
        state: WindowState,
        span: Span,
        reader: Reader,
        limit: int | None,
    ) -> tuple[Tensor, KeptState]:
        """`kept_attention` of all samples, or of one by one where their blocks differ."""
        assert self.kept is not None
        assert state.kept is not None
        counts, lengths = span.counts.tolist(), span.lengths.tolist()
        if len({*zip(counts, lengths, strict=True)}) > 1:
            samples = [
                self._with_kept(
                    q[i : i + 1],
                    (joined[0][i : i + 1], joined[1][i : i + 1]),
                    after.select(torch.tensor([i])),
                    state.select(torch.tensor([i])),
                    replace(span, counts=span.counts[i : i + 1], lengths=span.lengths[i : i + 1]),
                    reader,
                    limit,
                )
                for i in range(len(q))
            ]
            outs, states = zip(*samples, strict=True)
            return torch.cat(outs), KeptState(*map(torch.cat, zip(*states, strict=True)))
        read, whole = lengths[0], q.shape[2]
        if not read:
            return q.new_zeros(len(q), whole, q.shape[1], joined[1].shape[3]), state.kept
        held = joined[0].shape[2] - whole + read
        keys = torch.cat([state.kept.keys, joined[0][:, :, :held]], 2)
        values = torch.cat([state.kept.values, joined[1][:, :, :held]], 2)
        reach = min((x for x in (self.context, limit) if x is not None), default=None)
        out, kept = kept_attention(
            q[:, :, :read],
            Pairs(keys, values, after.sink_keys, after.sink_values),
            state.kept,
            Sight(counts[0], read, span.window, span.sinks, reach, limit),
            reader,
            self.kept,
        )
        return F.pad(out, (0, 0, 0, 0, 0, whole - read)), kept

    def empty(self, k: Tensor, v: Tensor, span: Span) -> WindowState:
        """The state before the first token."""
        count = 0 if self.kept is None else self.kept.count
        return WindowState.empty(k, v, span, self.memory is not None, count)

    def absorb(self, k: Tensor, v: Tensor, positions: Tensor, span: Span) -> WindowState:
        """The state after keys, rotated by `positions`, (B, T), and values that the base made."""
        if self.rotation is not None:
            k = self.rotation(k, -positions.to(k.device))
        state = self.empty(k, v, span)
        joined = torch.cat([state.keys, k], 2), torch.cat([state.values, v], 2)
        asked = k.repeat_interleave(self.heads // k.shape[1], 1)  # nobody asks: any queries do
        after = span.after(state, k, v, self._remember(asked, joined, state, span)[1])
        if self.kept is not None:  # so early no attention counts
            reader = Reader(_nothing, self.rotation, 1.0)
            return after._replace(
                kept=self._with_kept(asked, joined, after, state, span, reader, None)[1]
            )
        return after

    def _remember(
        self, q: Tensor, joined: tuple[Tensor, Tensor], state: WindowState, span: Span
    ) -> tuple[Tensor | None, Tensor]:
        """What the memory adds, (B, H, T, V), and the memory when the tokens have left."""
        if self.memory is None or self.memory.use == "off":
            return None, state.matrix
        k, v = (x[:, :, -span.tokens - span.window + 1 :][:, :, : span.tokens] for x in joined)
        return self.memory(q, k, v, state.matrix, span.written)


def _nothing(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention that nobody looks at: (n, C, H, V)."""
    return q.new_zeros(len(q), q.shape[2], q.shape[1], v.shape[3])


@dataclass
class WindowRun:
    """A forward pass with a window; a kept state is moved on."""

    span: Span
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
