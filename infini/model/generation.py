"""In front of a causal LM's class: saving, and what `generate` needs to carry the memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from infini.errors import InputError
from infini.model import serialization as storage
from infini.model import standard_files
from infini.model.architectures import CACHE, take_cache
from infini.model.decoder_base import newest

PREFILL_SEGMENTS = 16  # or windows, of a prompt that are read at once


class InfiniModel:
    """What a retrofitted causal LM does differently."""

    infini_config: dict[str, Any]

    def save_pretrained(
        self, save_directory: str | Path, is_main_process: bool = True, **_: Any
    ) -> None:
        """Write our tensors, the settings and a model card; the base is named, not copied.

        is_main_process: of several, the one that writes. Hugging Face's further options concern
        whole models and do not apply.
        """
        if is_main_process:
            storage.save(self, Path(save_directory))

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """As of any module; our tensors may have the names that they are saved by."""
        return super().load_state_dict(  # type: ignore[misc]
            standard_files.with_full_names(self, state_dict), *args, **kwargs
        )

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """The base's: Trainer misses nothing else in a checkpoint."""
        return self.state_dict().keys() - set(standard_files.full_names(self).values())  # type: ignore[attr-defined]

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise InputError(
                f"cache_implementation={generation_config.cache_implementation!r}: a model with "
                "memory brings its own cache: leave it out"
            )
        decoder = self.get_decoder()  # type: ignore[attr-defined]
        if (given := take_cache(model_kwargs)) is not None:
            decoder.accept(given)
            model_kwargs[CACHE] = given
        elif generation_config.use_cache:
            model_kwargs[CACHE] = decoder.new_cache()
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, *args, **kwargs
        )

    def _prefill(
        self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> Any:
        """A long prompt is read in chunks: in constant memory, however long it is.

        What a given cache has read stands before it, unless the prompt begins with that.
        """
        cache = model_kwargs.get(CACHE)
        if cache is not None:
            alone = model_kwargs.get("inputs_embeds") is None and cache.begin(input_ids)
            mask = model_kwargs.get("attention_mask")
            if alone and mask is not None:  # without columns for what stands before
                model_kwargs["attention_mask"] = newest(mask, input_ids.shape[1])
            name = "window" if self.infini_config["method"] == "window" else "segment_length"
            chunk = PREFILL_SEGMENTS * self.infini_config[name]
            if generation_config.prefill_chunk_size is None and input_ids.shape[1] > chunk:
                generation_config.prefill_chunk_size = chunk
        return super()._prefill(  # type: ignore[misc]
            input_ids, generation_config, model_kwargs, **kwargs
        )
