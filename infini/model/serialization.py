"""What a retrofit is on disk: its settings, its tensors and a model card; never the base."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from infini.errors import InputError
from infini.files import read_json
from infini.model import standard_files
from infini.model.base import check_finite
from infini.model.card import CARD, render
from infini.model.modules import infini_parameters
from infini.model.tensor_files import HASH, content_hash, read_tensors, write_tensors

CONFIG, TENSORS = "infini_config.json", "infini.safetensors"


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write a retrofitted model's own part into `folder`; InputError for weights not finite."""
    settings, tensors = model.infini_config, infini_parameters(model)
    check_finite(tensors, str(folder))
    write_tensors(folder / TENSORS, tensors)
    recorded = {**settings, HASH: _hash(settings, tensors)}
    card = render(settings, sum(t.numel() for t in tensors.values()))
    try:
        (folder / CONFIG).write_text(json.dumps(recorded, indent=2) + "\n")
        (folder / CARD).write_text(card)
        standard_files.write(model, folder, TENSORS)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error}") from None


def _hash(settings: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Of all that decides what the model computes; where the base is found may change."""
    own = {**settings, "base": settings["base"]["fingerprint"]}
    return content_hash(tensors, json.dumps(own, sort_keys=True))


class Saved(NamedTuple):
    """What `save` wrote."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    intact: bool  # they are as they were written, as far as a hash was


def read(folder: Path) -> Saved:
    """What is in a folder; InputError where it is nothing that `save` wrote."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no {CONFIG}: not a folder that save_pretrained wrote")
    settings = read_json(folder / CONFIG)
    tensors, _ = read_tensors(folder / TENSORS)
    wanted = settings.pop(HASH, None)
    try:
        intact = wanted == _hash(settings, tensors)
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / CONFIG}: incomplete: {error}") from None
    return Saved(settings, tensors, intact)


def restore(saved: Saved, model: PreTrainedModel, folder: Path) -> None:
    """Put saved tensors into a retrofitted model; InputError where they are not all it needs."""
    file, ours, tensors = folder / TENSORS, infini_parameters(model), saved.tensors
    if missing := sorted(ours.keys() - tensors.keys()):
        raise InputError(f"{file}: missing tensors: {', '.join(missing)}")
    if extra := sorted(tensors.keys() - ours.keys()):
        raise InputError(f"{file}: unexpected tensors: {', '.join(extra)}")
    for name, parameter in ours.items():
        if parameter.shape != tensors[name].shape:
            raise InputError(
                f"{file}: {name} has shape {tuple(tensors[name].shape)}, "
                f"{tuple(parameter.shape)} is needed"
            )
    check_finite(tensors, str(file))
    if not saved.intact:
        raise InputError(
            f"{folder}: {CONFIG} and {TENSORS} are not what was saved: one is damaged or of "
            f"another model (the {HASH} differs)"
        )
    for name, parameter in ours.items():
        parameter.data.copy_(tensors[name])
