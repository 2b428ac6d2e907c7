"""A constant-size long-term memory for pretrained language models (arXiv 2404.07143, 2510.07318).

`retrofit` puts the memory into a causal language model of transformers, `model.save_pretrained`
saves it, `load` loads it again, `remove` takes it out. `save_memory` and `load_memory` save and
load the cache, which holds what a model has read. `infini.memory` has the operations on tensors.

`import infini` tells the Auto classes of transformers how to load a saved model; every name below
is imported when it is first used (PEP 562). Invalid input raises `InputError`, a ValueError of
`infini.errors`, with a message of one line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infini import memory
    from infini.evaluation.bench_policies import bench
    from infini.evaluation.evaluate_texts import evaluate
    from infini.memory import InfiniAttention
    from infini.memory.eviction import RetentionPolicy, register_policy
    from infini.model.fit_policy import fit_policy
    from infini.model.loading import load
    from infini.model.memory_file import load_memory, save_memory
    from infini.model.retrofit import remove, retrofit

__all__ = [
    "InfiniAttention",
    "RetentionPolicy",
    "bench",
    "evaluate",
    "fit_policy",
    "load",
    "load_memory",
    "memory",
    "register_policy",
    "remove",
    "retrofit",
    "save_memory",
]
_MODULES = {
    "InfiniAttention": "infini.memory",
    "RetentionPolicy": "infini.memory.eviction",
    "bench": "infini.evaluation.bench_policies",
    "evaluate": "infini.evaluation.evaluate_texts",
    "fit_policy": "infini.model.fit_policy",
    "load": "infini.model.loading",
    "load_memory": "infini.model.memory_file",
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
    try:
        module = import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        if not _MODULES[name].startswith("infini.evaluation."):
            raise
        message = f"infini.{name} needs {error.name}: pip install 'infini[pipeline]'"
        raise ModuleNotFoundError(message, name=error.name) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


import_module("infini.model.hub")  # registers our classes with the Auto classes
