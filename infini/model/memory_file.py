"""Save and load what a model has read: its cache, as a safetensors file."""

import json
from pathlib import Path
from typing import Any

from infini.errors import InputError
from infini.model.cache import CHANGED_BASE, MIXED
from infini.model.decoder_base import MIXED_MEMORY
from infini.model.segmented.cache import SegmentedCache
from infini.model.tensor_files import check_tensors_finite, read_tensors, write_tensors
from infini.model.window.cache import WindowCache


def save_memory(state: SegmentedCache | WindowCache, path: str | Path) -> None:
    """Save what a model has read, for the same memory layers anywhere.

    Args:
        state: the cache that the model returned: `past_key_values` of its output, `cache` from
            transformers 5.24 on.
        path: the safetensors file to write.

    Raises:
        InputError: If `state` is no such cache or cannot be read back, the base had changed since
            the retrofit, weights changed while it was read, or the file cannot be written.

    Examples:
        >>> output = model(input_ids)
        >>> infini.save_memory(output.past_key_values, "book.safetensors")
    """
    if not isinstance(state, SegmentedCache | WindowCache):
        raise InputError(
            "state must be the cache that a model with a memory returns, "
            f"got a {type(state).__name__}"
        )
    if state.fingerprint == CHANGED_BASE:
        raise InputError(
            f"{path}: the base had changed since retrofit, and `load` would not find it: save it "
            "(model.save_pretrained(folder, save_base=BASE_FOLDER)) and read the text again"
        )
    if state.fingerprint == MIXED:
        raise InputError(f"{path}: {MIXED_MEMORY}")
    metadata = {
        "format": state.file_format,
        "fingerprint": state.fingerprint,
        "dtype": state.dtype or "",
        "seen_tokens": str(state.seen_tokens),
    }
    write_tensors(Path(path), state.tensors() | state.history_tensors(), metadata)


def load_memory(path: str | Path, model: Any = None) -> SegmentedCache | WindowCache:
    """Load what a model has read: the cache to continue with.

    Args:
        path: a file that `save_memory` wrote.
        model: the model that will continue, to check and move the cache to it now; None: at the
            first use.

    Returns:
        The cache, which continues where it was saved: give `generate` new tokens alone, any number
        of times, or all tokens since the first that was read, as with any cache. What repeats
        tokens that were read, but does not continue them, is refused.

    Raises:
        InputError: If the file is no saved memory, or memory layers other than the model's wrote
            it.

    Examples:
        >>> memory = infini.load_memory("book.safetensors", model)
        >>> model.generate(question, past_key_values=memory, max_new_tokens=20)
    """
    tensors, metadata = read_tensors(path)
    cache_types: dict[str, type[SegmentedCache | WindowCache]] = {
        cache_type.file_format: cache_type for cache_type in (SegmentedCache, WindowCache)
    }
    if metadata.get("format") not in cache_types:
        if str(metadata.get("format")).startswith(("infini-window-", "infini-segmented-")):
            raise InputError(
                f"{path}: saved by another version of infini: read the text again, and save it"
            )
        raise InputError(f"{path}: not a memory that infini saved: {json.dumps(metadata)}")
    check_tensors_finite(tensors, str(path))
    try:
        cache_type = cache_types[metadata["format"]]
        histories = {name: tensors.pop(name) for name in cache_type("").history_tensors()}
        state = cache_type.from_tensors(metadata["fingerprint"], tensors)
        state.load_history(histories)
        state.dtype = metadata["dtype"] or None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a memory that infini saved: {error!r}") from None
    if model is not None:
        if not hasattr(model, "infini_config"):
            raise InputError(f"{path}: the model has no memory: infini.load the one that wrote it")
        model.get_decoder().adopt_cache(state)
    return state
