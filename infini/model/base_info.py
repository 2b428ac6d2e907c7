"""Facts about a base from its config.json alone: no weight is loaded, no torch is needed."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from infini.errors import InputError

# `model_type` in the config.json of a folder that a retrofitted model was saved to
MODEL_TYPE = "infini"
MODEL_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")  # on the hub


class BaseInfo(NamedTuple):
    """Architecture and size of a base, as far as its config says."""

    # Architecture, as transformers names it
    model_type: str
    # Number of decoder layers
    layers: int | None
    # Longest text that it reads at once, in tokens
    context: int | None
    # Longest text in which positions mean the same, in tokens: a window lies within it
    window_context: int | None


def base_info(model: str, revision: str | None = None) -> BaseInfo | None:
    """Read the config of a base.

    Args:
        model: a folder written by save_pretrained, or a name on the Hugging Face hub.
        revision: commit, branch or tag on the hub; None: main.

    Returns:
        The facts; None if the hub cannot be reached or has no such model.

    Raises:
        InputError: If `model` is neither a folder with a model nor a hub name, or its config is
            damaged.
    """
    folder = Path(os.path.expanduser(model))
    if os.path.exists(folder):  # False, too, of a name that no file can have
        file: Path | None = _config_in_folder(folder)
    elif MODEL_NAME.fullmatch(model) and not model.startswith("."):
        file = _config_on_hub(model, revision or "main")
    else:
        raise InputError(f"base.model must be an existing folder or a hub name, got {model!r:.80}")
    if file is None:
        return None
    try:
        config = json.loads(file.read_text())
        config = config.get("text_config") or config
        model_type = config["model_type"]
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"base.model: {file}: not a model's config ({error!r})") from None
    context = _first_integer(config, "max_position_embeddings", "n_positions")
    return BaseInfo(
        str(model_type),
        _first_integer(config, "num_hidden_layers", "n_layer", "num_layers"),
        context,
        _longrope_context(config) or context,
    )


def _config_in_folder(folder: Path) -> Path:
    """Return the config.json of a folder that save_pretrained wrote; InputError without one."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"base.model: no config.json in {str(folder)!r}: save_pretrained has one")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"base.model: no .safetensors file in {str(folder)!r}: no pickle is read")
    return file


def _config_on_hub(name: str, revision: str) -> Path | None:
    """Return the downloaded config.json of a model on the hub; None if it cannot be had."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            cached = hf_hub_download(name, "config.json", revision=revision, etag_timeout=5)
    except Exception:  # of many kinds; loading the base raises the error
        return None
    return Path(cached)


def _longrope_context(config: dict[str, Any]) -> int | None:
    """Return the context before longrope extended it, which rotates longer texts differently."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) != "longrope":
        return None
    return _first_integer(config | rope, "original_max_position_embeddings")


def _first_integer(config: dict[str, Any], *names: str) -> int | None:
    """Return the first of these keys' values that is an integer."""
    return next((config[name] for name in names if type(config.get(name)) is int), None)
