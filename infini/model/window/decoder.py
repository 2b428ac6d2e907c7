"""Decoder mixin of a window model: reads a text of any length through its window."""

from typing import Any

import torch
from torch import Tensor, nn

from infini.errors import InputError
from infini.memory.eviction import append_pinned
from infini.memory.packing import Packing, gather
from infini.memory.window import ChunkInfo
from infini.model.architectures import CACHE
from infini.model.cache import MemoryCache
from infini.model.decoder_base import (
    NO_PINNED,
    StatefulDecoder,
    as_token_mask,
    as_tuple,
    check_pinned_mask,
    input_kwargs,
    mask_of_new_tokens,
    select_inputs,
)
from infini.model.peft_adapters import active_modules
from infini.model.window.attention import HANDLER, PREFIX, attention_kwargs
from infini.model.window.cache import WindowCache
from infini.model.window.config import WindowConfig
from infini.model.window.layer import WindowHandler, WindowLayer


class WindowDecoder(StatefulDecoder):
    """Mixin put before a decoder's class: reads a text of any length through its window."""

    retrofit_config: WindowConfig
    cache_type = WindowCache
    # Number of positions of a base that adds learned ones to its embedding; None: other bases
    learned_positions: int | None
    # Smallest sliding window of the base's own, in tokens; None: it has none
    own_sliding_window: int | None

    # Not compiled itself; the base's passes inside it are
    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        pinned: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the decoder on the next tokens of a batch of texts.

        Args:
            input_ids: Tokens, (B, T); or else `inputs_embeds`.
            attention_mask: (B, past + T) or (B, T), zero on padding, on either side.
            position_ids: Ignored: positions count the tokens without padding.
            inputs_embeds: Embeddings, (B, T, d).
            use_cache: Whether to return a cache.
            pinned: Which of the tokens are pinned, (B, T) bool: once such a token has left the
                window, its pair is one of the retained pairs of every head, whatever its score.
                Sinks and padding take no slot. Beyond the base's context or a layer's own sliding
                window it is met as the furthest pair that they allow.
            **kwargs: As of the base's decoder; the cache is one that an earlier call returned,
                which is advanced in place.

        Returns:
            The base's output, with the cache.

        Raises:
            InputError: Invalid inputs, a cache of another model, or more pinned tokens, those of
                earlier calls included, than pairs are retained.
        """
        if HANDLER in kwargs:  # called by the passes below, or by `install_window`
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
        if not self.config._attn_implementation.startswith(PREFIX):
            raise InputError(
                "the attention implementation was changed without the window: call "
                "model.set_attn_implementation on the whole model"
            )
        return_dict = kwargs.pop("return_dict", None)
        inputs = select_inputs(input_ids, inputs_embeds, kwargs)
        batch, tokens = inputs.shape[:2]
        mask = mask_of_new_tokens(attention_mask, tokens)
        packing = Packing.from_mask(batch, tokens, mask)
        cache: WindowCache | None = self.prepare_cache(kwargs, use_cache, inputs, attention_mask)
        token_mask = as_token_mask(mask, batch, tokens)
        all_pinned = self.pinned_positions(pinned, token_mask, cache)
        if self._fits_base(tokens, packing.lengths, cache):
            out = self._forward_base(inputs, mask, cache, kwargs)
        else:
            out = self._forward_window(inputs, packing, cache, all_pinned, kwargs)
        if cache is not None:
            cache.append(inputs, token_mask)
            if all_pinned is not None:
                cache.pinned = all_pinned
        setattr(out, CACHE, cache)
        return out if return_dict is not False else as_tuple(out)

    def _fits_base(self, tokens: int, lengths: Tensor, cache: WindowCache | None) -> bool:
        """Return whether the base itself reads the text, with the new tokens.

        Beyond the base's own sliding window it does not: its mask would count padding, and its
        keys and values would take more bytes than the window's state.
        """
        if cache is not None and cache.states:
            return False
        columns = tokens if cache is None else cache.token_mask.shape[1] + tokens
        if self.own_sliding_window is not None and columns > self.own_sliding_window:
            return False
        past = 0 if cache is None else cache.token_counts
        config = self.retrofit_config
        return int((past + lengths).max()) <= config.window + config.sinks

    def _forward_base(
        self,
        inputs: Tensor,
        mask: Tensor | None,
        cache: WindowCache | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """Run the base's own attention on texts that fit into its window and ours."""
        token_mask = as_token_mask(mask, *inputs.shape[:2])
        past = 0 if cache is None else cache.token_counts[:, None]
        positions = (token_mask.cumsum(1) - 1 + past).clamp(min=0)  # (B, T)
        if cache is not None:
            token_mask = torch.cat([cache.token_mask, token_mask], 1)
        out = super().forward(
            **input_kwargs(inputs),
            **{CACHE: None if cache is None else cache.base_cache},
            attention_mask=None if bool(token_mask.all()) else token_mask.long().to(inputs.device),
            position_ids=positions.to(inputs.device),
            use_cache=cache is not None,
            **kwargs,
        )
        if cache is not None:
            cache.token_mask = token_mask
            cache.positions = torch.cat([cache.positions, positions], 1)
        return out

    def pinned_positions(
        self, pinned: Any, token_mask: Tensor, cache: MemoryCache | None
    ) -> Tensor | None:
        assert cache is None or isinstance(cache, WindowCache)
        batch, tokens = token_mask.shape
        known = torch.zeros(batch, 0, dtype=torch.int64)
        if cache is not None and cache.batch_size:
            known = cache.pinned
        if pinned is None:
            return known if known.shape[1] else None
        config = self.retrofit_config
        if not config.retained:
            raise InputError(NO_PINNED)
        check_pinned_mask(pinned, batch, tokens)
        past = torch.zeros(batch, dtype=torch.int64)
        if cache is not None and cache.batch_size:
            past = cache.token_counts
        positions = past[:, None] + token_mask.cumsum(1) - 1  # (B, T)
        new = pinned.cpu() & token_mask & (positions >= config.sinks)
        together = append_pinned(known, new, positions)
        if together.shape[1] > config.retained:
            raise InputError(
                f"pinned must have ≤ {config.retained} tokens a sample (retained="
                f"{config.retained}), without the first {config.sinks}, which stay anyway, and "
                f"with those of earlier calls; got {together.shape[1]}"
            )
        return together if together.shape[1] else None

    def are_pinned(self, pinned: Tensor, token_mask: Tensor, cache: WindowCache) -> bool:
        """Return whether tokens that were read as the cache's last are sinks or pinned already.

        Args:
            pinned: Which of them have to be, (B, T) bool.
            token_mask: Which of them are not padding, (B, T) bool, on the CPU.
            cache: The cache after them.
        """
        count = token_mask.cumsum(1)
        positions = cache.token_counts[:, None] - count[:, -1:] + count - 1  # (B, T)
        missing = pinned.cpu() & token_mask & (positions >= self.retrofit_config.sinks)
        rows = zip(positions, missing, cache.pinned, strict=True)
        return all(bool(torch.isin(row[own], known).all()) for row, own, known in rows)

    def _forward_window(
        self,
        inputs: Tensor,
        packing: Packing,
        cache: WindowCache | None,
        pinned: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """Run the base with every layer's attention replaced by its `WindowLayer`."""
        batch, tokens = inputs.shape[:2]
        if cache is not None and cache.base_cache.layers:
            self._import_kv(cache)
        past = torch.zeros(batch, dtype=torch.int64) if cache is None else cache.token_counts
        config = self.retrofit_config
        chunk = ChunkInfo(past, packing.lengths, tokens, config.window, config.sinks, pinned)
        handler = WindowHandler(chunk)
        if cache is not None:
            handler = WindowHandler(chunk, cache.states, {})
        out = super().forward(
            **input_kwargs(packing.pack(inputs, 1)),
            **{CACHE: None},
            **attention_kwargs(handler, inputs.device),
            position_ids=self._position_ids(chunk).to(inputs.device),
            use_cache=False,
            **kwargs,
        )
        if cache is not None and handler.next_states is not None:
            cache.states = handler.next_states
        out.last_hidden_state = packing.unpack(out.last_hidden_state, 1)
        if out.get("hidden_states") is not None:
            out.hidden_states = tuple(packing.unpack(h, 1) for h in out.hidden_states)
        return out

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _position_ids(self, chunk: ChunkInfo) -> Tensor:
        """Return the base's position ids, (B, T): zeros unless they are learned.

        Learned positions restart at 0 wherever the base's context ends. They are part of a token's
        keys, so they cannot be counted from the window's edge; clamping them to the last position
        would leave later tokens without an order.
        """
        positions = chunk.positions.expand(len(chunk.past_lengths), -1)
        if self.learned_positions is None:
            return torch.zeros_like(positions)
        return positions % self.learned_positions

    def _import_kv(self, cache: WindowCache) -> None:
        """Turn the base's keys and values of a short text into window states."""
        batch, columns = cache.token_mask.shape
        packing = Packing.from_mask(batch, columns, cache.token_mask)
        past = torch.zeros_like(cache.token_counts)
        config = self.retrofit_config
        pinned = cache.pinned if cache.pinned.shape[1] else None
        chunk = ChunkInfo(past, packing.lengths, columns, config.window, config.sinks, pinned)
        positions = packing.pack(cache.positions, 1)
        order = packing.order
        states = {}
        for module in active_modules(self):
            if isinstance(module, WindowLayer):
                layer = cache.base_cache.layers[module.layer_index]
                k, v = layer.keys, layer.values
                if order is not None:
                    k, v = (gather(x, order.to(x.device), 2) for x in (k, v))
                states[module.layer_index] = module.import_kv(k, v, positions, chunk)
        cache.switch_to_window(states)

    def create_cache(self) -> WindowCache:
        return WindowCache(self.fingerprint())

    def memory_parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{module.layer_index}.{name}": parameter
            for module in active_modules(self)
            if isinstance(module, WindowLayer)
            for name, parameter in module.named_parameters()
        }
