"""A constant-size long-term memory for pretrained language models (arXiv 2404.07143).

`retrofit` puts it into a causal model of transformers, `model.save_pretrained` writes it, `load`
brings it back, `remove` takes it out. What a model has read, its cache, `save_memory` writes and
`load_memory` reads. `infini.memory` is the mathematics alone.

The names below are there after `import infini`; each is imported when it is first used, so
that nobody waits for what they do not use. transformers' Auto classes load saved models from then
on, or at once where transformers was imported before; `register_auto_classes()` tells them so.
InputError, a ValueError of `infini.errors`, is the user's mistake in one line.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infini import memory
    from infini.memory import InfiniAttention
    from infini.memory.eviction import RetentionPolicy, register_policy
    from infini.model.hub import register_auto_classes
    from infini.model.loading import load
    from infini.model.memory_file import load_memory, save_memory
    from infini.model.retrofit import remove, retrofit

__all__ = [
    "InfiniAttention",
    "RetentionPolicy",
    "load",
    "load_memory",
    "memory",
    "register_auto_classes",
    "register_policy",
    "remove",
    "retrofit",
    "save_memory",
]
_HOMES = {
    "InfiniAttention": "infini.memory",
    "RetentionPolicy": "infini.memory.eviction",
    "load": "infini.model.loading",
    "load_memory": "infini.model.memory_file",
    "register_auto_classes": "infini.model.hub",
    "register_policy": "infini.memory.eviction",
    "remove": "infini.model.retrofit",
    "retrofit": "infini.model.retrofit",
    "save_memory": "infini.model.memory_file",
}


def __getattr__(name: str) -> Any:
    if name == "memory":
        return import_module("infini.memory")
    if name not in _HOMES:
        raise AttributeError(f"module 'infini' has no attribute {name!r}")
    if _HOMES[name].startswith("infini.model."):
        _register_auto_classes()
    return getattr(import_module(_HOMES[name]), name)


def _register_auto_classes() -> None:
    import_module("infini.model.hub").register_auto_classes()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "transformers" in sys.modules:
    _register_auto_classes()
