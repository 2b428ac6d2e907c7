"""What a retrofit adds to a Hugging Face model's own classes: segments, state, saving.

A retrofitted model keeps its type and gets these in front of it: its decoder reads any
length by segments, `generate` carries the memory, `save_pretrained` writes our tensors.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from infini import storage
from infini.base import tensors_fingerprint
from infini.cache import InfiniCache
from infini.errors import InputError
from infini.ragged import Packing, Part, drive, join, split
from infini.segments import MemoryModule, Run, TakesRun, run_rows, running

PREFILL_SEGMENTS = 16  # of a prompt that are read at once


class InfiniDecoder(TakesRun):
    """In front of a decoder's class: any length by segments, or beside its full attention."""

    infini: dict[str, Any]  # the retrofit's settings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: InfiniCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base's own; past_key_values: what an earlier call returned, moved on in place.

        attention_mask: (B, past + T), zero on padding, on either side. In a segmented run
        positions restart in every segment, whatever position_ids says.
        """
        if self.run is not None:  # one of the passes below
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **kwargs,
            )
        inputs = input_ids if inputs_embeds is None else inputs_embeds
        if inputs is None or not inputs.shape[1]:
            raise InputError("input_ids or inputs_embeds: at least one token is needed")
        if kwargs.get("output_attentions"):
            raise InputError("output_attentions: a model with memory does not return them")
        kwargs.pop("return_dict", None)
        batch, tokens = inputs.shape[:2]
        packing = Packing.of(batch, tokens, _newest(attention_mask, tokens))
        cache = self._cache(past_key_values, use_cache, batch)
        if not self.infini["segmented"]:
            states = {} if cache is None else cache.memory
            run = Run(packing, tokens, self.infini["segment_length"], states)
            with running(self, run):
                out = super().forward(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    past_key_values=None if cache is None else cache.base,
                    inputs_embeds=inputs_embeds,
                    use_cache=cache is not None,
                    **kwargs,
                )
        else:
            out = self._segments(packing.pack(inputs, 1), packing.lengths, cache, kwargs)
            out.last_hidden_state = packing.unpack(out.last_hidden_state, 1)
            if out.get("hidden_states") is not None:
                out.hidden_states = tuple(packing.unpack(h, 1) for h in out.hidden_states)
        if cache is not None:
            cache.seen += tokens
        out.past_key_values = cache
        return out

    def _segments(
        self, inputs: Tensor, lengths: Tensor, cache: InfiniCache | None, kwargs: dict[str, Any]
    ) -> Any:
        """A segmented run of packed inputs; the hidden states, (B, T, d), in the same order."""
        length = self.infini["segment_length"]
        if cache is None:
            return run_rows(self, inputs, lengths, length, {}, **kwargs)
        parts = split(cache.pending, lengths, length)
        out: Any = None
        hidden: list[list[Tensor]] = []  # by part: the last hidden state, then those of each layer

        def step(part: Part) -> Tensor:
            nonlocal out
            taken = part.take(inputs, 1)
            if part is parts[1]:
                out = run_rows(self, taken, part.counts, length, cache.memory, **kwargs)
            else:
                out = self._begun_segment(taken, part.counts, cache, kwargs)
            states = out.get("hidden_states") or ()
            hidden.append([out.last_hidden_state, *states])
            return out.last_hidden_state

        tokens = inputs.shape[1]
        last = drive(step, parts, tokens, 1)
        if last is None:
            raise InputError("attention_mask: no real token in the batch")
        used = [part for part in parts if part.width]
        out.last_hidden_state = last
        if len(hidden[0]) > 1:
            out.hidden_states = tuple(
                join(list(zip(used, column, strict=True)), tokens, 1)
                for column in list(zip(*hidden, strict=True))[1:]
            )
        return out

    def _begun_segment(
        self, inputs: Tensor, counts: Tensor, cache: InfiniCache, kwargs: dict[str, Any]
    ) -> Any:
        """Some more tokens of each sample's segment begun, the others' keys and values cached."""
        length, tokens = self.infini["segment_length"], inputs.shape[1]
        positions = cache.pending[:, None] + torch.arange(tokens)  # (B, t)
        mask = None
        if not cache.live.all():
            # New padding is behind the real tokens: nothing to hide within this pass.
            mask = torch.cat([cache.live, torch.ones(positions.shape, dtype=torch.bool)], 1)
            mask = mask.long().to(inputs.device)
        name = "inputs_embeds" if inputs.is_floating_point() else "input_ids"
        with running(self, Run(Packing(counts, None), tokens, length, cache.memory)):
            out = super().forward(
                **{name: inputs},
                attention_mask=mask,
                position_ids=positions.clamp(max=length - 1).to(inputs.device),
                past_key_values=cache.base,
                use_cache=True,
                **kwargs,
            )
        cache.advance(counts, tokens, length)
        return out

    def new_cache(self) -> InfiniCache:
        """An empty state."""
        # Full attention keeps what the base itself would, segments plain keys and values.
        config = None if self.infini["segmented"] else self.config
        return InfiniCache(self.fingerprint(), DynamicCache(config=config))

    def _cache(
        self, given: InfiniCache | None, use_cache: bool | None, batch: int
    ) -> InfiniCache | None:
        """The state to move on, or none is kept."""
        if given is not None and not isinstance(given, InfiniCache):
            raise InputError(
                f"past_key_values: a {type(given).__name__} cannot hold the memory: pass what an "
                "earlier call of this model returned"
            )
        if use_cache is None:
            use_cache = given is not None or getattr(self.config, "use_cache", False)
        checkpointing = getattr(self, "gradient_checkpointing", False) and self.training
        if not use_cache or checkpointing:
            if given is not None:
                raise InputError("past_key_values needs use_cache, without gradient checkpointing")
            return None
        cache = self.new_cache() if given is None else given
        if not cache.checked:
            self.check(cache)
        cache.start(batch)
        return cache

    def check(self, cache: InfiniCache) -> None:
        """Take a loaded state, or refuse one that other memory layers wrote (InputError)."""
        if cache.fingerprint != self.fingerprint():
            raise InputError(
                f"the memory was written by other memory layers (fingerprint {cache.fingerprint}, "
                f"this model's is {self.fingerprint()}): load the adapter that wrote it"
            )
        cache.to(next(self.parameters()).device).checked = True

    def fingerprint(self) -> str:
        """Identifies the memory layers: their settings and weights."""
        ours = {
            f"{module.layer_index}.{name}": tensor
            for module in self.modules()
            if isinstance(module, MemoryModule)
            for name, tensor in module.named_parameters()
        }
        return tensors_fingerprint(ours, str(sorted(self.infini.items())))


class InfiniModel:
    """In front of a causal LM's class: saving, and what `generate` needs."""

    infini_config: dict[str, Any]

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write our tensors, the settings and a model card; the base is named, not copied.

        Hugging Face's further options concern whole models and do not apply.
        """
        storage.save(self, Path(save_directory))

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise InputError(
                f"cache_implementation={generation_config.cache_implementation!r}: a model with "
                "memory brings its own cache: leave it out"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache:
            model_kwargs["past_key_values"] = self.get_decoder().new_cache()  # type: ignore[attr-defined]
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *args, **kwargs
        )

    def _prefill(
        self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        """A long prompt is read in chunks: in constant memory, however long it is."""
        if model_kwargs.get("past_key_values") is not None:
            chunk = PREFILL_SEGMENTS * self.infini_config["segment_length"]
            if generation_config.prefill_chunk_size is None and input_ids.shape[1] > chunk:
                generation_config.prefill_chunk_size = chunk
        return super()._prefill(  # type: ignore[misc]
            input_ids, generation_config, model_kwargs, **kwargs
        )


def _newest(mask: Tensor | None, tokens: int) -> Tensor | None:
    """The part of a (B, past + T) mask that concerns the T new tokens."""
    if mask is None:
        return None
    if mask.ndim != 2 or mask.shape[1] < tokens:
        raise InputError(
            f"attention_mask: (batch, past + {tokens}) is needed, got {tuple(mask.shape)}"
        )
    return mask[:, -tokens:]


def put_in_front(module: nn.Module, mixin: type) -> None:
    """Give a module's class `mixin` as its first base, under its own name."""
    own = type(module)
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    module.__class__ = type(own.__name__, (mixin, own), names)


def take_out(module: nn.Module, mixin: type) -> None:
    """Undo `put_in_front`."""
    if isinstance(module, mixin):
        module.__class__ = type(module).__bases__[1]
