"""Files of a retrofitted model: config, added tensors and model card, never the base.

`infini_config.json` and `infini.safetensors` are ours. Beside them are the two files that Hugging
Face's tools look for: `config.json` names the class that loads the folder (`infini.model.hub`),
and an index lists our tensors, so that Trainer resumes and reloads them, and them alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from infini.errors import InputError
from infini.files import read_json
from infini.model.base_identity import FINGERPRINT, RECORDED_KEYS
from infini.model.base_info import MODEL_TYPE
from infini.model.model_card import CARD_FILE, render_card
from infini.model.modules import infini_parameters
from infini.model.tensor_files import (
    HASH_KEY,
    check_tensors_finite,
    content_hash,
    read_tensors,
    write_tensors,
)

FORMAT = 4  # of infini_config.json
CONFIG_FILE, TENSORS_FILE = "infini_config.json", "infini.safetensors"


class SavedModel(NamedTuple):
    """Content of a folder that `save` wrote."""

    # `infini_config` of the retrofitted model: method, options and base
    config: dict[str, Any]
    # Tensors that the retrofit added, by `layers.<index>.<name>`
    tensors: dict[str, Tensor]
    # Whether config and tensors match the hash that was saved with them
    intact: bool


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write the config, the added tensors and a model card of a retrofitted model.

    Args:
        model: the retrofitted model.
        folder: the folder to write to; created if it is missing.

    Raises:
        InputError: If a tensor is not finite, or the folder cannot be written.
    """
    config, tensors = model.infini_config, infini_parameters(model)
    check_tensors_finite(tensors, str(folder))
    write_tensors(folder / TENSORS_FILE, tensors)
    recorded = {"format": FORMAT, **config, HASH_KEY: _hash(config, tensors)}
    index = {"weight_map": dict.fromkeys(state_dict_names(model).values(), TENSORS_FILE)}
    files = {
        CONFIG_FILE: _as_json(recorded),
        CARD_FILE: render_card(config, sum(t.numel() for t in tensors.values())),
        CONFIG_NAME: _as_json({"model_type": MODEL_TYPE}),
        # No "metadata": the base's own class, which would draw the base at random, stops at that
        SAFE_WEIGHTS_INDEX_NAME: _as_json(index),
    }
    try:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error}") from None


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _hash(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of what decides the model's output; the place of the base may change."""
    own = {**config, "base": config["base"][FINGERPRINT]}
    return content_hash(tensors, json.dumps(own, sort_keys=True))


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read the config of a saved model.

    Args:
        folder: a folder that `save_pretrained` of a retrofitted model wrote.

    Returns:
        The content of infini_config.json: `format`, `method`, the options, `base`, the hash.

    Raises:
        InputError: If the folder is no such folder, or was written by another version.
    """
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder}: no {CONFIG_FILE}: not a folder that save_pretrained wrote")
    config = read_json(file)
    if (found := config.get("format")) != FORMAT:
        if type(found) is int and 1 <= found < FORMAT:
            raise InputError(
                f"{file}: format must be {FORMAT}, got {found}: an earlier version of infini "
                "wrote it, save the model again"
            )
        raise InputError(f"{file}: format must be {FORMAT}, got {found!r}")
    base = config.get("base")
    for key in RECORDED_KEYS:
        if not isinstance(base, dict) or key not in base:
            raise InputError(f"{file}: incomplete: no base.{key}")
    if "method" not in config:
        raise InputError(f"{file}: incomplete: no method")
    return config


def read_saved(folder: Path) -> SavedModel:
    """Read the files of a saved model.

    Args:
        folder: a folder that `save_pretrained` of a retrofitted model wrote.

    Returns:
        Config and tensors.

    Raises:
        InputError: If the folder is no such folder, or a file in it is not readable.
    """
    config = read_config(folder)
    tensors, _ = read_tensors(folder / TENSORS_FILE)
    stored_hash = config.pop(HASH_KEY, None)
    del config["format"]
    return SavedModel(config, tensors, stored_hash == _hash(config, tensors))


def load_tensors(saved: SavedModel, model: PreTrainedModel, folder: Path) -> None:
    """Copy saved tensors into a retrofitted model.

    Args:
        saved: what `read_saved` returned for `folder`.
        model: a model retrofitted with the saved config.
        folder: the folder, for messages.

    Raises:
        InputError: If tensors are missing, unexpected, misshapen, not finite or damaged; the
            model is unchanged then.
    """
    file, parameters, tensors = folder / TENSORS_FILE, infini_parameters(model), saved.tensors
    if missing := sorted(parameters.keys() - tensors.keys()):
        raise InputError(f"{file}: missing tensors: {', '.join(missing)}")
    if extra := sorted(tensors.keys() - parameters.keys()):
        raise InputError(f"{file}: unexpected tensors: {', '.join(extra)}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise InputError(
                f"{file}: {name} must have shape {tuple(parameter.shape)}, "
                f"got {tuple(tensors[name].shape)}"
            )
    check_tensors_finite(tensors, str(file))
    if not saved.intact:
        raise InputError(
            f"{folder}: {CONFIG_FILE} and {TENSORS_FILE} are not what was saved: one is damaged "
            f"or of another model (the {HASH_KEY} differs)"
        )
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])


def state_dict_names(model: PreTrainedModel) -> dict[str, str]:
    """Return the name in the model's state_dict of every added tensor, by its name in our file."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: names[id(tensor)] for name, tensor in infini_parameters(model).items()}


def rename_to_state_dict(
    model: PreTrainedModel, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return a state_dict in which tensors named as in our file have their state_dict names."""
    names = state_dict_names(model)
    return {names.get(name, name): tensor for name, tensor in tensors.items()}
