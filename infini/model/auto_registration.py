"""transformers learns of our saved models once it is there; who does not use it does not wait."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

MODEL_TYPE = "infini"  # of our saved models, in config.json
# Modules of transformers, and what of `infini.model.auto` each is followed by.
FOLLOWED = {
    "transformers.models.auto.configuration_auto": "register_config",
    "transformers.models.auto.modeling_auto": "register_model",
    "transformers.models.auto.tokenization_auto": "register_tokenizer",
}


def announce() -> None:
    """Register with each of them: now where it is there, else as soon as it is imported."""
    for name in FOLLOWED.keys() & sys.modules.keys():
        _register(name)
    sys.meta_path.insert(0, _Follower(FOLLOWED.keys() - sys.modules.keys()))


def _register(name: str) -> None:
    getattr(import_module("infini.model.auto"), FOLLOWED[name])()


class _Follower(MetaPathFinder):
    """Finds these modules as Python does, and runs what they are followed by behind them."""

    def __init__(self, names: set[str]):
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.names:
            return None
        self.names.remove(fullname)  # Python's own finders are asked now
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(fullname)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
