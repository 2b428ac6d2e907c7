"""Load a saved model with a memory: for good, or for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.errors import InputError
from infini.model.base import load_base, load_tokenizer
from infini.model.base_identity import base_difference, base_name, base_revision
from infini.model.modules import has_memory
from infini.model.retrofit import remove, retrofit_known
from infini.model.serialization import CONFIG_FILE, load_tensors, read_config, read_saved


def load(
    folder: str | Path, base: PreTrainedModel | str | Path | None = None, **options: Any
) -> PreTrainedModel:
    """Load the model that `save_pretrained` of a retrofitted model wrote.

    Args:
        folder: the folder that was saved to.
        base: the base without a memory, which is retrofitted in place, or its folder or hub name;
            None: the base is found by its recorded name and revision.
        **options: arguments of transformers' from_pretrained for a base that is not loaded yet,
            such as dtype or device_map. Without them it is in float32, on the CPU.

    Returns:
        The base with the saved memory, in evaluation mode.

    Raises:
        InputError: If the folder is no saved model, the base is missing or another one, or the
            tensors do not fit.

    Examples:
        >>> model.save_pretrained("my-model")
        >>> model = infini.load("my-model")
        >>> model = infini.load("my-model", base="path/to/the/base")  # if it has moved
    """
    folder = Path(folder)
    saved = read_saved(folder)
    recorded = saved.config["base"]
    if not isinstance(base, PreTrainedModel):
        model = _load_base(base, recorded["model"], recorded["revision"], options)
    elif options:
        raise InputError(f"{min(options)}: not an option for a base that is loaded already")
    else:
        model = base
    if has_memory(model):
        raise InputError("the base has a memory already: infini.remove(base) first")
    if difference := base_difference(recorded, model):
        name, needed = base_name(model), recorded["model"]
        other = "" if name == needed else f"; it needs {needed!r}"
        raise InputError(f"{folder}: made for another base than {name!r}: {difference}{other}")
    retrofit_options = {name: value for name, value in saved.config.items() if name != "base"}
    found = {"model": base_name(model), "revision": base_revision(model)}
    try:
        retrofit_known(model, recorded | found, **retrofit_options)
    except InputError as error:
        raise InputError(f"{folder / CONFIG_FILE}: {error}") from None
    try:
        load_tensors(saved, model, folder)
    except InputError:
        remove(model)
        raise
    return model.eval()


@contextmanager
def loaded(folder: str | Path, base: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Turn a base into a saved model for the length of a block.

    Args:
        folder: a folder that `save_pretrained` of a retrofitted model wrote.
        base: the base; it is restored after the block.

    Yields:
        `base` with the saved memory.

    Raises:
        InputError: If the folder is no saved model, or made for another base.
    """
    model = load(folder, base)
    try:
        yield model
    finally:
        remove(model)


def load_base_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer of the base that a saved model was made for.

    Args:
        folder: a folder that `save_pretrained` of a retrofitted model wrote.

    Returns:
        The tokenizer.

    Raises:
        InputError: If the folder is no saved model, or its base is not where it was.
    """
    base = read_config(folder)["base"]
    try:
        return load_tokenizer(base["model"], base["revision"])
    except InputError as error:
        raise InputError(f"{error}; or load the base's own tokenizer from where it is") from None


def _load_base(
    base: Any, name: str, revision: str | None, options: dict[str, Any]
) -> PreTrainedModel:
    """Load the base from the given folder or hub name; None: by its recorded name."""
    if isinstance(base, str | Path):
        return load_base(str(base), **options)
    if base is not None:
        raise InputError(f"base must be a model or its folder, got {type(base).__name__}")
    try:
        return load_base(name, revision, **options)
    except InputError as error:
        raise InputError(f"{error}; or say where the base is: base=FOLDER") from None
