"""Put a mixin before a module's class, so that the module keeps its type and name."""

from typing import Any

from torch import nn


def extend_class(module: nn.Module, mixin: type) -> None:
    """Make `mixin` the first base class of a module's class, which keeps its name."""
    own = type(module)
    names = {
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__reduce_ex__": _reduce,
    }
    module.__class__ = type(own.__name__, (mixin, own), names)


def restore_class(module: nn.Module, mixin: type) -> None:
    """Undo `extend_class` on a module."""
    if isinstance(module, mixin):
        module.__class__ = type(module).__bases__[1]


def _reduce(module: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """Return what pickles or copies an extended module: pickle finds no class made here."""
    mixin, own = type(module).__bases__
    return (_rebuild, (own, mixin), *nn.Module.__reduce_ex__(module, protocol)[2:])


def _rebuild(own: type[nn.Module], mixin: type) -> nn.Module:
    """Return an extended module without attributes, which pickle then sets."""
    module = own.__new__(own)
    extend_class(module, mixin)
    return module
