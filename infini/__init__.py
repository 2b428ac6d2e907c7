"""A constant-size long-term memory for pretrained language models (arXiv 2404.07143, 2510.07318).

`retrofit` puts the memory into a causal language model of transformers, `model.save_pretrained`
saves it, `load` loads it again, `remove` takes it out. `save_memory` and `load_memory` save and
load the cache, which holds what a model has read. `infini.memory` has the operations on tensors.

Every name below is imported when it is first used (PEP 562), so `import infini` imports neither
torch nor transformers. The first use of a model function registers our classes with the Auto
classes of transformers, as `register_auto_classes()` does. Invalid input raises `InputError`, a
ValueError of `infini.errors`, with a message of one line.
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
_MODULES = {
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
    if name not in _MODULES:
        raise AttributeError(f"module 'infini' has no attribute {name!r}")
    if _MODULES[name].startswith("infini.model."):
        _register_auto_classes()
    return getattr(import_module(_MODULES[name]), name)


def _register_auto_classes() -> None:
    import_module("infini.model.hub").register_auto_classes()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "transformers" in sys.modules:
    _register_auto_classes()
