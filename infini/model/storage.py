"""What a retrofit is on disk: its settings, its tensors and a model card; never the base."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from infini.errors import InputError
from infini.model.base import check_finite
from infini.model.layers import our_tensors

CONFIG, TENSORS, CARD = "infini_config.json", "infini.safetensors", "README.md"


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write a retrofitted model's own part into `folder`."""
    settings, tensors = model.infini_config, our_tensors(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: t.detach().contiguous() for k, t in tensors.items()}, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    card = environment.get_template("model_card.md.j2").render(
        settings=settings, parameters=sum(t.numel() for t in tensors.values())
    )
    (folder / CARD).write_text(card)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and tensors that `save` wrote (InputError where they are not)."""
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder}: no {CONFIG}: not a folder that save_pretrained wrote")
    try:
        settings: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        return settings, load_file(folder / TENSORS)
    except json.JSONDecodeError as error:
        raise InputError(f"{folder / CONFIG}: not JSON: {error}") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / TENSORS}: not readable: {error}") from None


def restore(tensors: dict[str, Tensor], model: PreTrainedModel, file: Path) -> None:
    """Put stored tensors into a retrofitted model, if they are exactly what it needs."""
    ours = our_tensors(model)
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
    for name, parameter in ours.items():
        parameter.data.copy_(tensors[name])
