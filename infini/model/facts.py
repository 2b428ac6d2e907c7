"""What a base in a folder is, read off its config.json: no weight is loaded, no torch needed."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from infini.errors import InputError

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Facts(NamedTuple):
    """Of a base; None where its config does not say."""

    kind: str  # of architecture, as transformers names it
    layers: int | None
    context: int | None  # tokens that it can read at once


def facts_of(model: str) -> Facts | None:
    """Of the base in this folder; None for a hub name. InputError for what is neither."""
    folder = Path(model).expanduser()
    if not folder.exists():
        if HUB_NAME.fullmatch(model) and not model.startswith("."):
            return None
        raise InputError(f"base.model: an existing folder or a hub name is needed, got {model!r}")
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"base.model: no config.json in {model!r}: save_pretrained writes one")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"base.model: no .safetensors file in {model!r}: pickles are not read")
    try:
        config = json.loads(file.read_text())
        config = config.get("text_config") or config
        kind = config["model_type"]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"base.model: {file}: not a model's config ({error!r})") from None
    return Facts(
        str(kind),
        _whole(config, "num_hidden_layers", "n_layer", "num_layers"),
        _whole(config, "max_position_embeddings", "n_positions"),
    )


def _whole(config: dict[str, Any], *names: str) -> int | None:
    """The first of these keys that holds a whole number."""
    return next((config[name] for name in names if type(config.get(name)) is int), None)
