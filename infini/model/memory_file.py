"""What a model has read, its cache, as a safetensors file."""

import json
from pathlib import Path
from typing import Any

from infini.errors import InputError
from infini.model.segmented.cache import SegmentedCache
from infini.model.tensor_files import check_tensors_finite, read_tensors, write_tensors
from infini.model.window.cache import WindowCache


def save_memory(state: SegmentedCache | WindowCache, path: str | Path) -> None:
    """Write what a model has read to a safetensors file, for the same memory layers anywhere.

    state: the cache that the model returned (`past_key_values`, from transformers 5.24 `cache`);
    path: the file. InputError: no such cache, or one that cannot be read back.
    """
    if not isinstance(state, SegmentedCache | WindowCache):
        raise InputError("save_memory needs the cache that a model with memory returns")
    tensors = state.tensors()
    write_tensors(
        Path(path), tensors, {"format": state.file_format, "fingerprint": state.fingerprint}
    )


def load_memory(path: str | Path, model: Any = None) -> SegmentedCache | WindowCache:
    """Read a state back: the cache for what comes after the text it has read.

    path: what `save_memory` wrote. For generate() it stands before the prompt: give only the new
    tokens, as often as you like; or, as with any cache, all since the first of them. InputError
    if the file is no such state, or other memory layers wrote it; with `model` now, else at the
    first use.
    """
    tensors, metadata = read_tensors(path)
    kinds: dict[str, type[SegmentedCache | WindowCache]] = {
        kind.file_format: kind for kind in (SegmentedCache, WindowCache)
    }
    if metadata.get("format") not in kinds:
        raise InputError(f"{path}: not a memory that infini saved: {json.dumps(metadata)}")
    check_tensors_finite(tensors, str(path))
    try:
        state = kinds[metadata["format"]].from_tensors(metadata["fingerprint"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not a memory that infini saved: {error!r}") from None
    if model is not None:
        if not hasattr(model, "infini_config"):
            raise InputError(f"{path}: the model has no memory: infini.load the one that wrote it")
        model.get_decoder().adopt_cache(state)
    return state
