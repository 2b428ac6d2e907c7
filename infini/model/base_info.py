"""What a base in a folder is, read off its config.json: no weight is loaded, no torch needed."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from infini.errors import InputError

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class BaseInfo(NamedTuple):
    """Of a base; None where its config does not say."""

    kind: str  # of architecture, as transformers names it
    layers: int | None
    context: int | None  # tokens that it can read at once


def base_info(model: str, revision: str | None = None) -> BaseInfo | None:
    """Of the base in this folder, or on the hub as far as that can be reached; None if not.

    InputError for what is neither a folder of a base nor a hub name.
    """
    folder = Path(os.path.expanduser(model))
    if os.path.exists(folder):  # False, too, of a name that no file can have
        file: Path | None = _in_folder(folder)
    elif HUB_NAME.fullmatch(model) and not model.startswith("."):
        file = _on_hub(model, revision or "main")
    else:
        raise InputError(
            f"base.model: an existing folder or a hub name is needed, got {model!r:.80}"
        )
    if file is None:
        return None
    try:
        config = json.loads(file.read_text())
        config = config.get("text_config") or config
        kind = config["model_type"]
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"base.model: {file}: not a model's config ({error!r})") from None
    return BaseInfo(
        str(kind),
        _whole(config, "num_hidden_layers", "n_layer", "num_layers"),
        _whole(config, "max_position_embeddings", "n_positions"),
    )


def _in_folder(folder: Path) -> Path:
    """The config of a base that save_pretrained wrote there."""
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"base.model: no config.json in {str(folder)!r}: save_pretrained has one")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"base.model: no .safetensors file in {str(folder)!r}: no pickle is read")
    return file


def _on_hub(name: str, revision: str) -> Path | None:
    """The config of a base on the hub, which is a few kB; None where it cannot be had."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            cached = hf_hub_download(name, "config.json", revision=revision, etag_timeout=5)
    except Exception:  # of many kinds; whoever loads the base tells
        return None
    return Path(cached)


def _whole(config: dict[str, Any], *names: str) -> int | None:
    """The first of these keys that holds a whole number."""
    return next((config[name] for name in names if type(config.get(name)) is int), None)
