"""From a folder back to a model with a memory, for good or for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from infini.errors import InputError
from infini.model import storage
from infini.model.base import load_base, weights_fingerprint
from infini.model.layers import has_memory
from infini.model.retrofit import remove, retrofit


def load(folder: str | Path, base: PreTrainedModel | None = None) -> PreTrainedModel:
    """The model that `save_pretrained` wrote to `folder`, in evaluation mode.

    base: the base without a memory, used in place, wherever it is; None: found by its recorded
    name and revision, on the CPU. InputError for another base, and for tensors that do not fit.
    """
    folder = Path(folder)
    file = folder / storage.CONFIG
    saved = storage.read(folder)
    settings = saved.settings
    try:
        wanted: dict[str, Any] = settings["base"]
        options = {
            k: v for k, v in settings.items() if k not in ("base", "format") and v is not None
        }
        name, revision, fingerprint = (wanted[k] for k in ("model", "revision", "fingerprint"))
        if settings["format"] != 1:
            raise InputError(f"{file}: format 1 is needed")
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: incomplete: {error}") from None
    if base is None:
        try:
            base = load_base(name, revision)
        except InputError as error:
            raise InputError(f"{error}; or give the base itself: infini.load(…, base=…)") from None
    if not isinstance(base, PreTrainedModel):
        raise InputError(f"base: a model is needed, got {type(base).__name__}")
    if has_memory(base):
        raise InputError("the base has a memory already: infini.remove(base) first")
    if weights_fingerprint(base) != fingerprint:
        raise InputError(
            f"{folder}: made for another base than {base.config._name_or_path!r}: it needs {name!r}"
        )
    try:
        model = retrofit(base, **options)
    except TypeError as error:
        raise InputError(f"{file}: {error}") from None
    try:
        storage.restore(saved, model, folder)
    except InputError:
        remove(model)
        raise
    return model.eval()


@contextmanager
def loaded(folder: str | Path, base: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within it, `base` is the model that `save_pretrained` wrote; behind it, itself again."""
    model = load(folder, base)
    try:
        yield model
    finally:
        remove(model)
