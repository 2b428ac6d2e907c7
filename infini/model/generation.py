"""Mixin of a retrofitted causal LM: saving, and what `generate` needs for the memory."""

import copy
from collections.abc import Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import GenerationMixin
from transformers.utils import logging

from infini.errors import InputError
from infini.memory.eviction import RetentionPolicy, policy_by_name, policy_names
from infini.model.architectures import CACHE, take_cache
from infini.model.base_identity import base_difference, base_tensors, describe_base
from infini.model.cache import MemoryCache
from infini.model.class_extension import restore_class
from infini.model.decoder_base import as_token_mask, check_pinned_mask, mask_of_new_tokens
from infini.model.modules import retained_modules
from infini.model.peft_adapters import check_no_adapters
from infini.model.serialization import rename_to_state_dict, save, state_dict_names
from infini.model.window.attention import PREFIX, install_attention

# Segments or windows of a prompt that are read at once
PREFILL_SEGMENTS = 16
# Seconds of reading after which a prompt has a progress bar
PROGRESS_DELAY = 2.0
# Accepted tokens that assisted decoding reads again with the next ones, at most
REREAD_TOKENS = 16
PINNED = "pinned"  # argument of `generate`
# Kinds of assisted decoding that run parts of the model, without its memory
UNSUPPORTED_ASSISTANTS = ("assistant_early_exit", "use_mtp", "speculation_type")

# Types whose values == compares
PLAIN_TYPES = (bool, int, float, complex, str, bytes, type(None), set, frozenset)


class RetrofittedModel:
    """Mixin of a retrofitted causal LM, put before its own class."""

    infini_config: dict[str, Any]

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        save_base: str | Path | None = None,
        **_: Any,
    ) -> None:
        """Write the added parameters, the config and a model card; the base is named, not copied.

        Args:
            save_directory: the folder to write to.
            is_main_process: whether this process, of several, writes; all call this.
            save_base: a folder to which the base is written too, and where `load` will look for
                it: for a base that has changed since `retrofit` (resized, finetuned, LoRA merged).
            **_: further options of transformers, which concern whole models; ignored.

        Raises:
            InputError: a base that has changed and is not saved, weights that are not finite, a
                folder that cannot be written, or a retention policy that is not registered and
                could not be loaded again.
        """
        check_no_adapters(
            self,
            "they are no part of a saved memory: save them by save_pretrained of the PeftModel "
            "around it, or take them out by unload() or merge_and_unload()",
        )
        _record_policy(self)
        if save_base is not None:
            _save_base(self, Path(save_base), is_main_process)
        elif difference := base_difference(self.infini_config["base"], self):
            raise InputError(
                f"{save_directory}: the base has changed since retrofit, `load` would not find it: "
                f"{difference}; to save it too: save_pretrained(folder, save_base=BASE_FOLDER)"
            )
        self.get_decoder().known_base.accept()  # type: ignore[attr-defined]
        if is_main_process:
            save(self, Path(save_directory))

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Load a state dict; our tensors may have the names that they are saved by."""
        return super().load_state_dict(  # type: ignore[misc]
            rename_to_state_dict(self, state_dict), *args, **kwargs
        )

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """The base's tensors: Trainer must not miss them in a checkpoint."""
        return self.state_dict().keys() - set(state_dict_names(self).values())  # type: ignore[attr-defined]

    def _validate_generation_mode(
        self, generation_mode: Any, generation_config: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse what no memory can do, before anything is read."""
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic"):
            raise InputError(
                f"cache_implementation={implementation!r}: a model with a memory uses its own "
                "cache: leave it out"
            )
        for name in UNSUPPORTED_ASSISTANTS:
            if getattr(generation_config, name, None):
                raise InputError(
                    f"{name} is not supported by a model with a memory: use "
                    "prompt_lookup_num_tokens or assistant_model"
                )
        # peft puts its own in this one's place, and with a prompt its prefix would be lost
        peft_model = getattr(vars(self).get("prepare_inputs_for_generation"), "__self__", None)
        peft_config = getattr(peft_model, "active_peft_config", None)
        if getattr(peft_config, "is_prompt_learning", False):
            raise InputError(
                f"{type(peft_config).__name__}: prefix and prompt tuning are not supported by "
                "generate of a model with a memory: use LoRA"
            )
        generation_config.cache_implementation = None  # "dynamic" is what ours is
        super()._validate_generation_mode(  # type: ignore[misc]
            generation_mode, generation_config, *args, **kwargs
        )

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Accept `pinned`, which the decoder takes, beside what the base takes."""
        own = {name: x for name, x in model_kwargs.items() if name != PINNED}
        super()._validate_model_kwargs(own)  # type: ignore[misc]

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        decoder = self.get_decoder()  # type: ignore[attr-defined]
        if (cache := take_cache(model_kwargs)) is not None:
            decoder.validate_cache(cache)
            model_kwargs[CACHE] = cache
        elif generation_config.use_cache:
            model_kwargs[CACHE] = decoder.new_cache()
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *args, **kwargs
        )

    def _prefill(
        self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        """Read a long prompt in chunks, so that memory use does not grow with its length.

        What a given cache has read precedes the prompt, unless the prompt begins with it.
        """
        cache, inputs = model_kwargs.get(CACHE), model_kwargs.get("inputs_embeds")
        if (pinned := model_kwargs.get(PINNED)) is not None:
            check_pinned_mask(pinned, *(input_ids if inputs is None else inputs).shape[:2])
        if cache is not None and inputs is not None:
            cache.reset_sequence()
        elif cache is not None:
            self._start_prompt(input_ids, generation_config, model_kwargs)
            self._check_pinned(input_ids, model_kwargs)
            size = self._chunk_size(generation_config)
            rest = (input_ids.shape[1] - cache.get_seq_length() - 1) % size + 1  # read by super
            if generation_config.is_assistant:
                rest = 1
            self._read(input_ids[:, :-rest], generation_config, model_kwargs)
            if generation_config.is_assistant:  # its proposals may be dropped
                cache.rereads = True
                cache.take_snapshot()
        out = super()._prefill(  # type: ignore[misc]
            input_ids, generation_config, model_kwargs, **kwargs
        )
        if cache is not None:  # generated tokens are not pinned
            model_kwargs.pop(PINNED, None)
        return out

    def _chunk_size(self, generation_config: Any) -> int:
        """Return how many tokens of a prompt are read at once."""
        name = "window" if self.infini_config["method"] == "window" else "segment_length"
        size: int = PREFILL_SEGMENTS * self.infini_config[name]
        return generation_config.prefill_chunk_size or size

    def _start_prompt(
        self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> None:
        """Tell whether the prompt continues what the cache has read, and cut its mask if not."""
        cache, tokens = model_kwargs[CACHE], input_ids.shape[1]
        mask = model_kwargs.get("attention_mask")
        columns = getattr(generation_config, "_mask_length", tokens)  # of a mask without zeros
        if mask is not None:
            cache.check_mask(mask, tokens)
            columns = mask.shape[1]
        if not generation_config.is_assistant:
            cache.stop_recording()
        if columns > tokens:  # of past and new tokens: these are new
            cache.reset_sequence()
        elif not cache.start_or_continue(input_ids, as_token_mask(mask, *input_ids.shape)):
            return
        if mask is not None:  # drop columns of what the cache has read
            model_kwargs["attention_mask"] = mask_of_new_tokens(mask, tokens)
        generation_config._mask_length = tokens

    def _check_pinned(self, input_ids: Tensor, model_kwargs: dict[str, Any]) -> None:
        """Raise InputError if a prompt's tokens, (B, T), cannot be pinned, before any is read."""
        if (pinned := model_kwargs.get(PINNED)) is None:
            return
        check_pinned_mask(pinned, *input_ids.shape)
        cache = model_kwargs[CACHE]
        past, decoder = cache.get_seq_length(), self.get_decoder()  # type: ignore[attr-defined]
        mask = as_token_mask(model_kwargs.get("attention_mask"), *input_ids.shape)
        decoder.pinned_positions(pinned[:, past:], mask[:, past:], cache)
        if past and not decoder.are_pinned(pinned[:, :past], mask[:, :past], cache):
            raise InputError(
                f"pinned marks some of the {past} tokens that {CACHE} has read without it: a "
                "token is pinned by the call that reads it"
            )

    def _read(
        self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> None:
        """Read those tokens of a prompt, (B, T), that the cache has not read, in chunks."""
        size, end = self._chunk_size(generation_config), input_ids.shape[1]
        start = model_kwargs[CACHE].get_seq_length()
        mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
        pinned = model_kwargs.get(PINNED)
        with logging.tqdm(
            total=max(end - start, 0), desc="reading the prompt", unit=" tokens", leave=False,
            delay=PROGRESS_DELAY, mininterval=0.5,
        ) as bar:  # fmt: skip
            for first in range(start, end, size):
                last = min(first + size, end)
                chunk = {
                    **model_kwargs,
                    "attention_mask": None if mask is None else mask[:, :last],
                    "position_ids": None if positions is None else positions[..., first:last],
                    PINNED: None if pinned is None else pinned[:, first:last],
                }
                inputs = self.prepare_inputs_for_generation(
                    input_ids[:, first:last],  # type: ignore[arg-type]
                    is_first_iteration=True,
                    **chunk,
                )
                self(**inputs, return_dict=True)  # type: ignore[operator]
                bar.update(last - first)

    def _read_again(self, cache: MemoryCache, input_ids: Tensor, pinned: Tensor | None) -> None:
        """Read the tokens, (1, T), before which `crop` has put the cache; no logits.

        pinned: as the argument of `generate`, of the prompt's tokens.
        """
        if (start := cache.get_seq_length()) < input_ids.shape[1]:
            kwargs = {CACHE: cache, PINNED: _last_pinned(pinned, input_ids.shape[1], start)}
            self.get_decoder()(input_ids=input_ids[:, start:], use_cache=True, **kwargs)  # type: ignore[attr-defined]

    @wraps(GenerationMixin.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(
        self, input_ids: Tensor, next_sequence_length: int | None = None, **kwargs: Any
    ) -> Any:
        cache, pinned = kwargs.get(CACHE), kwargs.pop(PINNED, None)
        if isinstance(cache, MemoryCache) and cache.rereads and cache.records_past:
            # Assisted decoding: `crop` went back to before the last pass
            unread = input_ids.shape[1] - cache.get_seq_length()
            known = unread - (next_sequence_length or unread)
            if known > REREAD_TOKENS:
                self._read_again(cache, input_ids[:, : cache.get_seq_length() + known], pinned)
                unread -= known
            next_sequence_length = unread
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, next_sequence_length=next_sequence_length, **kwargs
        )
        if pinned is not None:
            embeds = inputs.get("inputs_embeds")
            width = (inputs["input_ids"] if embeds is None else embeds).shape[1]
            end = input_ids.shape[1] if embeds is None else pinned.shape[1]
            inputs[PINNED] = _last_pinned(pinned, max(end, width), max(end, width) - width)
        return inputs

    @wraps(GenerationMixin._get_candidate_generator)
    def _get_candidate_generator(
        self, *args: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        """Return the source of proposed tokens; an assistant model pins nothing."""
        own = {name: x for name, x in model_kwargs.items() if name != PINNED}
        return super()._get_candidate_generator(  # type: ignore[misc]
            *args, model_kwargs=own, **kwargs
        )

    @wraps(GenerationMixin._assisted_decoding)
    def _assisted_decoding(
        self, input_ids: Tensor, *args: Any, generation_config: Any, **kwargs: Any
    ) -> Any:
        """Decode with proposed tokens; a snapshot of the small state undoes what is rejected."""
        cache = kwargs.get(CACHE)
        if not isinstance(cache, MemoryCache):
            raise InputError("assisted decoding needs use_cache=True")
        if len(input_ids) > 1 or kwargs.get("inputs_embeds") is not None:
            raise InputError("assisted decoding needs input_ids of one sample")
        self._start_prompt(input_ids, generation_config, kwargs)
        self._check_pinned(input_ids, kwargs)
        self._read(input_ids[:, :-1], generation_config, kwargs)
        cache.rereads = True
        try:
            out = super()._assisted_decoding(  # type: ignore[misc]
                input_ids, *args, generation_config=generation_config, **kwargs
            )
        finally:
            cache.stop_recording()
        sequences = out if isinstance(out, Tensor) else out.sequences
        self._read_again(cache, sequences[:, :-1], kwargs.get(PINNED))
        return out

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """Set the attention implementation of the base; the window's attention stays before it."""
        super().set_attn_implementation(  # type: ignore[misc]
            attn_implementation, *args, **kwargs
        )
        implementation = self.config._attn_implementation  # type: ignore[attr-defined]
        if self.infini_config["method"] == "window" and not implementation.startswith(PREFIX):
            install_attention(self)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast the model; InputError for the meta device, where a memory has no values."""
        device = kwargs.get("device", next(iter(args), None))
        if str(device).partition(":")[0] == "meta" or getattr(device, "is_meta", False):
            raise InputError(
                "a model with a memory cannot be on the meta device: infini.remove(model) first"
            )
        return super().to(*args, **kwargs)  # type: ignore[misc]

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Move or cast all tensors; a base that was only moved stays known."""
        base, dtype = self.get_decoder().known_base, self.dtype  # type: ignore[attr-defined]
        known = base.is_known()
        super()._apply(*args, **kwargs)  # type: ignore[misc]
        if known and self.dtype == dtype:  # type: ignore[attr-defined]
            base.accept()
        return self


def _last_pinned(pinned: Tensor | None, end: int, start: int) -> Tensor | None:
    """Return which of the tokens from `start` to `end` are pinned: those behind a prompt are not.

    pinned: of the prompt, or of its last part that ends at `end`, (B, T); None: no token.
    """
    if pinned is None:
        return None
    pinned = F.pad(pinned, (0, max(0, end - pinned.shape[1])))
    return pinned[:, pinned.shape[1] - (end - start) :]


def _save_base(model: Any, folder: Path, is_main_process: bool) -> None:
    """Write a retrofitted model's base, and record that it is there."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise InputError(f"{folder}: a quantised base cannot be saved beside its memory")
    base = copy.copy(model)
    restore_class(base, RetrofittedModel)  # of the copy; its modules are the model's
    if is_main_process:
        try:
            base.save_pretrained(folder, state_dict=base_tensors(model))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder}: cannot be written: {error}") from None
    model.infini_config["base"] = describe_base(model, folder)


def _record_policy(model: Any) -> None:
    """Record the registered name of a window model's policy; InputError if there is none."""
    policies = [retained.policy for retained in retained_modules(model).values()]
    if not policies:
        return
    policy = policies[0]
    if policy.name not in policy_names() or not _is_equal(policy, policy_by_name(policy.name)):
        cls = type(policy).__name__
        raise InputError(
            f"policy {cls}: `load` could not make this object again: register what returns it, "
            f'infini.register_policy("my_policy", lambda: {cls}(…)), and retrofit with '
            'policy="my_policy"'
        )
    model.infini_config["policy"] = policy.name


def _is_equal(one: Any, other: Any) -> bool:
    """Return whether two policies, or values of their attributes, are certainly equal."""
    if type(one) is not type(other):
        return False
    if isinstance(one, RetentionPolicy):
        return _is_equal(_attributes(one), _attributes(other))
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _is_equal(x, other[key]) for key, x in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return bool(one == other) if isinstance(one, PLAIN_TYPES) else one is other


def _attributes(policy: RetentionPolicy) -> dict[str, Any]:
    return {name: value for name, value in vars(policy).items() if name != "name"}
