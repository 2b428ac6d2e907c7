"""Decoder mixin of segmented models: texts of any length, in chunks, padded on either side."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from infini.errors import InputError
from infini.memory.packing import Packing, Part, join, run_parts, split
from infini.model.architectures import CACHE
from infini.model.decoder_base import (
    StatefulDecoder,
    as_token_mask,
    as_tuple,
    input_kwargs,
    mask_of_new_tokens,
    select_inputs,
)
from infini.model.peft_adapters import active_modules
from infini.model.segmented.cache import SegmentedCache
from infini.model.segmented.config import SegmentedConfig
from infini.model.segmented.layers import MemoryModule
from infini.model.segmented.run import RUN, SegmentedRun, run_decoder, use_run


class SegmentedDecoder(StatefulDecoder):
    """Mixin before a decoder's own class: reads by segments, or with its full attention too.

    With `segmented=True` every layer sees one segment, and only the memory crosses segments. With
    `segmented=False` the layers that are the base's own keep their full attention.
    """

    retrofit_config: SegmentedConfig
    cache_type = SegmentedCache
    accepts_run = True  # see `run_decoder`

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
            input_ids: tokens, (B, T).
            attention_mask: (B, past + T) or, for the new tokens alone, (B, T); 0 on padding, on
                either side.
            position_ids: as the base's; ignored by segments, where positions restart.
            inputs_embeds: embeddings instead of tokens, (B, T, d).
            use_cache: whether to return a cache; a given one is advanced in place.
            pinned: refused: a model without retained pairs can pin no token.
            **kwargs: as the base's; the cache is what an earlier call of this model returned.

        Returns:
            As the base's; hidden states stand where their tokens are.

        Raises:
            InputError: If the model cannot answer the call.
        """
        given: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if RUN in kwargs:  # called by `run_decoder`
            with use_run(kwargs.pop(RUN)):
                return super().forward(**given, use_cache=use_cache, **kwargs)
        return_dict = kwargs.pop("return_dict", None)
        inputs = select_inputs(input_ids, inputs_embeds, kwargs)
        batch, tokens = inputs.shape[:2]
        mask = mask_of_new_tokens(attention_mask, tokens)
        self.pinned_positions(pinned, as_token_mask(mask, batch, tokens), None)
        packing = Packing.from_mask(batch, tokens, mask)
        cache = self.prepare_cache(kwargs, use_cache, inputs, attention_mask)
        if self.retrofit_config.segmented:
            out = self._read_by_segments(inputs, packing, cache, kwargs)
        else:
            out = self._read_with_full_attention(packing, cache, given | kwargs)
        if cache is not None:
            cache.append(inputs, as_token_mask(mask, batch, tokens))
        setattr(out, CACHE, cache)
        return out if return_dict is not False else as_tuple(out)

    def _read_with_full_attention(
        self, packing: Packing, cache: SegmentedCache | None, given: dict[str, Any]
    ) -> Any:
        """Run the base's own pass on its arguments, `given`.

        A mask of the new tokens alone, or none, is completed from the cache.
        """
        states = {} if cache is None else cache.memory
        inputs = next(given[k] for k in ("inputs_embeds", "input_ids") if given[k] is not None)
        batch, tokens = inputs.shape[:2]
        mask = given["attention_mask"]
        if cache is not None:
            past = cache.token_mask.shape[1]
            new = as_token_mask(mask_of_new_tokens(mask, tokens), batch, tokens)
            token_mask = torch.cat([cache.token_mask, new], 1)
            if past and (mask is None or mask.shape[1] < past + tokens):
                positions = (token_mask.cumsum(1) - 1).clamp(min=0)[:, past:]
                given["attention_mask"] = token_mask.long().to(inputs.device)
                given["position_ids"] = positions.to(inputs.device)
        run = SegmentedRun(packing, tokens, self.retrofit_config.segment_length, states)
        base = {CACHE: None if cache is None else cache.base_cache, "use_cache": cache is not None}
        with use_run(run):
            out = super().forward(**given, **base)
        if cache is not None:
            cache.token_mask = token_mask
        return out

    def _read_by_segments(
        self, inputs: Tensor, packing: Packing, cache: SegmentedCache | None, kwargs: dict[str, Any]
    ) -> Any:
        """Read a batch by segments; hidden states stand where their tokens are."""
        packed = packing.pack(inputs, 1)
        if cache is None:
            length = self.retrofit_config.segment_length
            out = run_decoder(self, packed, packing.lengths, length, {}, **kwargs)
        else:
            out = self._continue_from_cache(packed, packing.lengths, cache, kwargs)
        out.last_hidden_state = packing.unpack(out.last_hidden_state, 1)
        if out.get("hidden_states") is not None:
            out.hidden_states = tuple(packing.unpack(h, 1) for h in out.hidden_states)
        return out

    def _continue_from_cache(
        self, inputs: Tensor, lengths: Tensor, cache: SegmentedCache, kwargs: dict[str, Any]
    ) -> Any:
        """Read packed inputs by segments, from the cache's incomplete ones on; (B, T, d)."""
        length, tokens = self.retrofit_config.segment_length, inputs.shape[1]
        parts = split(cache.pending, lengths, length)
        out: Any = None
        hidden: list[list[Tensor]] = []  # by part: the last hidden state, then every layer's

        def collect(result: Any) -> Tensor:
            nonlocal out
            out = result
            hidden.append([out.last_hidden_state, *(out.get("hidden_states") or ())])
            return out.last_hidden_state

        def run_segments(part: Part) -> Tensor:
            rows = part.take(inputs, 1)
            return collect(run_decoder(self, rows, part.counts, length, cache.memory, **kwargs))

        def run_partial(part: Part) -> Tensor:
            rows = part.take(inputs, 1)
            return collect(self._run_part_of_segment(rows, part.counts, cache, kwargs))

        last = run_parts(parts, tokens, 1, run_partial=run_partial, run_segments=run_segments)
        if last is None:
            raise InputError("attention_mask must have a token in the batch, got padding alone")
        out.last_hidden_state = last
        if len(hidden[0]) > 1:
            out.hidden_states = tuple(
                join(list(zip(parts.nonempty, column, strict=True)), tokens, 1)
                for column in list(zip(*hidden, strict=True))[1:]
            )
        return out

    def _run_part_of_segment(
        self, inputs: Tensor, counts: Tensor, cache: SegmentedCache, kwargs: dict[str, Any]
    ) -> Any:
        """Read more tokens of every sample's incomplete segment, with the base's own cache."""
        length, tokens = self.retrofit_config.segment_length, inputs.shape[1]
        cache.align()
        positions = cache.pending[:, None] + torch.arange(tokens)  # (B, t)
        mask = None
        if not cache.token_mask.all():
            # New padding is behind the new tokens: causality hides it
            mask = torch.cat([cache.token_mask, torch.ones(positions.shape, dtype=torch.bool)], 1)
            mask = mask.long().to(inputs.device)
        with use_run(SegmentedRun(Packing(counts, None), tokens, length, cache.memory)):
            out = super().forward(
                **input_kwargs(inputs),
                **{CACHE: cache.base_cache},
                attention_mask=mask,
                position_ids=positions.clamp(max=length - 1).to(inputs.device),
                use_cache=True,
                **kwargs,
            )
        cache.advance(counts, tokens, length)
        return out

    def create_cache(self) -> SegmentedCache:
        # By segments: plain keys and values; with full attention: as the base caches them
        config = None if self.retrofit_config.segmented else self.config
        return SegmentedCache(self.fingerprint(), base=DynamicCache(config=config))

    def memory_parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{module.layer_index}.{name}": tensor
            for module in active_modules(self)
            if isinstance(module, MemoryModule)
            for name, tensor in module.own_parameters()
        }
