"""From a folder back to a model with a memory, for good or for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.errors import InputError
from infini.files import read_json
from infini.model import serialization as storage
from infini.model.base import load_base, load_tokenizer, weights_fingerprint
from infini.model.modules import has_memory
from infini.model.retrofit import remove, retrofit

NOT_OURS = ("base", "format")  # of the settings: no options of `retrofit`


def load(
    folder: str | Path, base: PreTrainedModel | str | Path | None = None, **options: Any
) -> PreTrainedModel:
    """The model that `save_pretrained` wrote to `folder`, in evaluation mode.

    base: the base without a memory, used in place, or its folder or hub name; None: found by its
    recorded name and revision. options: of `load_base` for a base that is not loaded yet, such as
    dtype or device_map; without them it is float32, on the CPU. InputError for another base, and
    for tensors that do not fit.
    """
    folder = Path(folder)
    file = folder / storage.CONFIG
    saved = storage.read(folder)
    name, revision, fingerprint = _recorded(saved.settings, file)
    if isinstance(base, PreTrainedModel):
        if options:
            raise InputError(f"{min(options)}: not for a base that is loaded already")
        plain = base
    else:
        plain = _base(base, name, revision, options)
    if has_memory(plain):
        raise InputError("the base has a memory already: infini.remove(base) first")
    if weights_fingerprint(plain) != fingerprint:
        there = plain.config._name_or_path
        raise InputError(f"{folder}: made for another base than {there!r}: it needs {name!r}")
    own = {k: v for k, v in saved.settings.items() if k not in NOT_OURS and v is not None}
    try:
        model = retrofit(plain, **own)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    try:
        storage.restore(saved, model, folder)
    except InputError:
        remove(model)
        raise
    return model.eval()


def load_recorded_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of the base that a saved model was made for; InputError where it is not."""
    file = Path(folder) / storage.CONFIG
    name, revision, _ = _recorded(read_json(file), file)
    try:
        return load_tokenizer(name, revision)
    except InputError as error:
        raise InputError(f"{error}; or load the base's own tokenizer from where it is") from None


@contextmanager
def loaded(folder: str | Path, base: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within it, `base` is the model that `save_pretrained` wrote; behind it, itself again."""
    model = load(folder, base)
    try:
        yield model
    finally:
        remove(model)


def _base(where: Any, name: str, revision: str | None, options: dict[str, Any]) -> PreTrainedModel:
    """From the folder or hub name `where`; None: by the recorded name and revision."""
    if isinstance(where, str | Path):
        return load_base(str(where), **options)
    if where is not None:
        raise InputError(f"base: a model or its folder is needed, got {type(where).__name__}")
    try:
        return load_base(name, revision, **options)
    except InputError as error:
        raise InputError(f"{error}; or say where the base is: base=FOLDER") from None


def _recorded(settings: dict[str, Any], file: Path) -> tuple[str, str | None, str]:
    """Name, revision and fingerprint of the base; InputError for another format."""
    try:
        if settings["format"] != 1:
            raise InputError(f"{file}: format 1 is needed")
        base = settings["base"]
        return base["model"], base["revision"], base["fingerprint"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: incomplete: {error}") from None
