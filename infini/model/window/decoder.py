"""In front of a decoder's class: a text of any length, through a window with a memory."""

from typing import Any

import torch
from torch import Tensor, nn

from infini.memory.packing import Packing, gather
from infini.memory.window import ChunkInfo
from infini.model.architectures import CACHE
from infini.model.decoder_base import StatefulDecoder, inputs_of, named, newest, real_tokens
from infini.model.window.attention import RUN, instructions
from infini.model.window.cache import WindowCache
from infini.model.window.layer import WindowLayer, WindowRun


class WindowDecoder(StatefulDecoder):
    """In front of a decoder's class: a text of any length, through a window with a memory."""

    cache_type = WindowCache
    learned_positions: int | None  # of a base that adds positions to its embedding: how many

    # Bookkeeping; the base's own passes are compiled
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base's own; its cache is what an earlier call returned, moved on in place.

        attention_mask: (B, past + T), zero on padding, on either side. Positions count the real
        tokens, whatever position_ids says. InputError for a call that has no answer.
        """
        if RUN in kwargs:  # one of the passes below, or a question about the base
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
        inputs = inputs_of(input_ids, inputs_embeds, kwargs)
        batch, tokens = inputs.shape[:2]
        mask = newest(attention_mask, tokens)
        packing = Packing.of(batch, tokens, mask)
        cache: WindowCache | None = self.take_state(kwargs, use_cache, inputs, attention_mask)
        counts = torch.zeros(batch, dtype=torch.int64) if cache is None else cache.counts
        longest = int((counts + packing.lengths).max())
        if longest <= self.infini["window"] + self.infini["sinks"] and not (cache and cache.states):
            out = self._whole(inputs, mask, cache, kwargs)
        else:
            out = self._through_window(inputs, packing, cache, kwargs)
        if cache is not None:
            cache.counts = cache.counts + packing.lengths
            cache.follow(inputs)
        setattr(out, CACHE, cache)
        return out

    def _whole(
        self,
        inputs: Tensor,
        mask: Tensor | None,
        cache: WindowCache | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """A text that the window and the sinks hold: the base itself, untouched."""
        real = real_tokens(mask, *inputs.shape[:2])
        counts = 0 if cache is None else cache.counts[:, None]
        positions = (real.cumsum(1) - 1 + counts).clamp(min=0)  # (B, T)
        live = real if cache is None else torch.cat([cache.live, real], 1)
        out = super().forward(
            **named(inputs),
            **{CACHE: None if cache is None else cache.text},
            attention_mask=None if bool(live.all()) else live.long().to(inputs.device),
            position_ids=positions.to(inputs.device),
            use_cache=cache is not None,
            **kwargs,
        )
        if cache is not None:
            cache.live = live
            cache.positions = torch.cat([cache.positions, positions], 1)
        return out

    def _through_window(
        self, inputs: Tensor, packing: Packing, cache: WindowCache | None, kwargs: dict[str, Any]
    ) -> Any:
        """A longer text: every sample's real tokens first, without positions to the attention."""
        batch, tokens = inputs.shape[:2]
        if cache is not None and cache.text.layers:
            self._absorb(cache)
        counts = torch.zeros(batch, dtype=torch.int64) if cache is None else cache.counts
        span = ChunkInfo(
            counts, packing.lengths, tokens, self.infini["window"], self.infini["sinks"]
        )
        run = WindowRun(span)
        if cache is not None:
            run = WindowRun(span, cache.states, {})
        out = super().forward(
            **named(packing.pack(inputs, 1)),
            **{CACHE: None},
            **instructions(run, inputs.device),
            position_ids=self._positions(span).to(inputs.device),
            use_cache=False,
            **kwargs,
        )
        if cache is not None and run.after is not None:
            cache.states = run.after
        out.last_hidden_state = packing.unpack(out.last_hidden_state, 1)
        if out.get("hidden_states") is not None:
            out.hidden_states = tuple(packing.unpack(h, 1) for h in out.hidden_states)
        return out

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _positions(self, span: ChunkInfo) -> Tensor:
        """What the base is told, (B, T): 0, as the rotation is ours.

        Learnt ones begin again where they end: a token keeps its own while it is in the window, so
        none can be at the edge's distance. All at the last one would have no order.
        """
        positions = span.positions.expand(len(span.past_lengths), -1)
        if self.learned_positions is None:
            return torch.zeros_like(positions)
        return positions % self.learned_positions

    def _absorb(self, cache: WindowCache) -> None:
        """Of a short text that goes on: sinks, window and memory, from the base's own cache."""
        batch, columns = cache.live.shape
        packing = Packing.of(batch, columns, cache.live)
        start = torch.zeros_like(cache.counts)
        window, sinks = self.infini["window"], self.infini["sinks"]
        span = ChunkInfo(start, packing.lengths, columns, window, sinks)
        positions = packing.pack(cache.positions, 1)
        order = packing.order
        states = {}
        for module in self.modules():
            if isinstance(module, WindowLayer):
                layer = cache.text.layers[module.layer_index]
                k, v = layer.keys, layer.values
                if order is not None:
                    k, v = (gather(x, order.to(x.device), 2) for x in (k, v))
                states[module.layer_index] = module.absorb(k, v, positions, span)
        cache.become_long(states)

    def empty_cache(self) -> WindowCache:
        return WindowCache(self.fingerprint())

    def our_parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{module.layer_index}.{name}": tensor
            for module in self.modules()
            if isinstance(module, WindowLayer)
            for name, tensor in module.named_parameters()
        }
