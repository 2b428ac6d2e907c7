"""Mixins put before a module's class."""

from torch import nn

from infini.model.class_extension import extend_class, restore_class


class Doubling:
    def forward(self, x: float) -> float:
        return 2 * super().forward(x)  # type: ignore[misc]


class Identity(nn.Module):
    def forward(self, x: float) -> float:
        return x


def test_extend_class_keeps_type_and_name() -> None:
    module, other = Identity(), Identity()
    extend_class(module, Doubling)
    assert module(3.0) == 6.0
    assert other(3.0) == 3.0
    assert isinstance(module, Identity)
    kind = type(module)
    assert (kind.__name__, kind.__qualname__, kind.__module__) == ("Identity", "Identity", __name__)
    restore_class(module, Doubling)
    assert type(module) is Identity
    restore_class(module, Doubling)  # nothing to undo
    assert type(module) is Identity
