"""Put a mixin before a module's class, so that the module keeps its type and name."""

from torch import nn


def extend_class(module: nn.Module, mixin: type) -> None:
    """Make `mixin` the first base class of a module's class, which keeps its name."""
    own = type(module)
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    module.__class__ = type(own.__name__, (mixin, own), names)


def restore_class(module: nn.Module, mixin: type) -> None:
    """Undo `extend_class` on a module."""
    if isinstance(module, mixin):
        module.__class__ = type(module).__bases__[1]
