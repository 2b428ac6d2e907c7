"""Mixin of a retrofitted causal LM: saving, and what `generate` needs for the memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from infini.errors import InputError
from infini.memory.eviction import RetentionPolicy, policy_by_name, policy_names
from infini.model.architectures import CACHE, take_cache
from infini.model.decoder_base import mask_of_new_tokens
from infini.model.modules import window_layers
from infini.model.serialization import rename_to_state_dict, save, state_dict_names

# Segments or windows of a prompt that are read at once
PREFILL_SEGMENTS = 16


class RetrofittedModel:
    """Mixin of a retrofitted causal LM, put before its own class."""

    infini_config: dict[str, Any]

    def save_pretrained(
        self, save_directory: str | Path, is_main_process: bool = True, **_: Any
    ) -> None:
        """Write the added parameters, the config and a model card; the base is named, not copied.

        Args:
            save_directory: the folder to write to.
            is_main_process: whether this process, of several, writes.
            **_: further options of transformers, which concern whole models; ignored.

        Raises:
            InputError: weights that are not finite, a folder that cannot be written, or a
                retention policy that is not registered and could not be loaded again.
        """
        _record_policy(self)
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

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise InputError(
                f"cache_implementation={generation_config.cache_implementation!r}: a model with "
                "a memory brings its own cache: leave it out"
            )
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
        cache = model_kwargs.get(CACHE)
        if cache is not None:
            is_new = model_kwargs.get("inputs_embeds") is None and cache.start_or_continue(
                input_ids
            )
            mask = model_kwargs.get("attention_mask")
            if is_new and mask is not None:  # drop columns of what the cache has read
                model_kwargs["attention_mask"] = mask_of_new_tokens(mask, input_ids.shape[1])
            name = "window" if self.infini_config["method"] == "window" else "segment_length"
            chunk = PREFILL_SEGMENTS * self.infini_config[name]
            if generation_config.prefill_chunk_size is None and input_ids.shape[1] > chunk:
                generation_config.prefill_chunk_size = chunk
        return super()._prefill(  # type: ignore[misc]
            input_ids, generation_config, model_kwargs, **kwargs
        )


def _record_policy(model: Any) -> None:
    """Record the registered name of a window model's policy; InputError if there is none."""
    policies = [
        layer.retained.policy
        for layer in window_layers(model).values()
        if layer.retained is not None
    ]
    if not policies:
        return
    name, cls = policies[0].name, type(policies[0]).__name__
    if name not in policy_names() or _plain(policies[0]) != _plain(policy_by_name(name)):
        raise InputError(
            f"policy {cls}: not registered as it is, so it could not be loaded again: "
            f"infini.register_policy(name, {cls}) first, or a function that returns this policy"
        )
    model.infini_config["policy"] = name


def _plain(policy: RetentionPolicy) -> tuple[type, dict[str, Any]]:
    """Return what tells two policies apart: their class and their plain attributes."""
    plain = (int, float, str, bool, type(None))
    own = {key: x for key, x in vars(policy).items() if isinstance(x, plain) and key != "name"}
    return type(policy), own
