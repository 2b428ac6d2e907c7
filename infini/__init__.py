"""infini: a constant-size long-term memory for pretrained language models."""

from importlib import import_module
from typing import Any

# Imported on first use: a stage then depends on, and waits for, only what it needs.
_HOMES = {
    "InfiniAttention": "infini.attention",
    "compressive_memory": "infini.memory",
    "retrofit": "infini.surgery",
    "remove": "infini.surgery",
    "load": "infini.surgery",
    "save_memory": "infini.cache",
    "load_memory": "infini.cache",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'infini' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
