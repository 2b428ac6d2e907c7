"""What `retrofit` can be asked for, before a base is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, TypedDict

from infini.choices import (
    Init,
    LocalKind,
    Method,
    Position,
    Update,
    WindowUpdate,
    check_bool,
    check_choice,
    check_finite,
    check_integer,
)
from infini.errors import InputError


class Options(TypedDict, total=False):
    """Further arguments of `retrofit`; their defaults are those of its settings."""

    window: int
    sinks: int
    retained: int
    update: WindowUpdate
    local: LocalKind
    position: Position | None
    alpha: float
    init: Init
    segmented: bool


@dataclass(frozen=True)
class Settings:
    """A retrofit in full."""

    method: Method
    layers: tuple[int, ...]  # decoder layers, from 0
    segment_length: int = 256
    update: Update = "delta"
    local: LocalKind = "softmax"
    # of the local attention; None: the base's own with init="teacher", else none
    position: Position | None = None
    alpha: float = 0.0  # where α starts (parallel)
    init: Init = "teacher"  # of a replaced layer
    segmented: bool = True

    def __post_init__(self) -> None:
        check_choice("method", self.method, Method)
        check_choice("update", self.update, Update)
        check_choice("local", self.local, LocalKind)
        check_choice("init", self.init, Init)
        if self.position is not None:
            check_choice("position", self.position, Position)
        if not self.layers:
            raise InputError("layers: at least one is needed")
        check_integer("segment_length", self.segment_length, 1)
        check_finite("alpha", self.alpha)
        check_bool("segmented", self.segmented)

    @property
    def taught(self) -> bool:
        """Whether a replaced layer starts as the base's own."""
        return self.method == "replace" and self.init == "teacher"


@dataclass(frozen=True)
class WindowSettings:
    """A window in full."""

    layers: tuple[int, ...]  # those with a memory, from 0
    window: int = 256  # tokens that are seen, the own one included
    sinks: int = 4  # first tokens of a text, seen for ever
    update: WindowUpdate = "delta"
    retained: int = 0  # pairs a head that stay exact behind the window

    def __post_init__(self) -> None:
        check_choice("update", self.update, WindowUpdate)
        check_integer("window", self.window, 1)
        check_integer("sinks", self.sinks, 0)
        check_integer("retained", self.retained, 0)
        if self.retained and not self.layers:
            raise InputError("kept: a layer to keep pairs in is needed, layers=[] names none")


ONE_METHODS: dict[str, Method] = {"alpha": "parallel", "init": "replace"}  # of `Settings`


def check_layers(layers: Sequence[int] | None) -> None:
    """InputError for what is no list of layers' numbers; None: the method's own."""
    if layers is None:
        return
    if isinstance(layers, str) or not isinstance(layers, Sequence):
        raise InputError(f"layers: a list of decoder layers is needed, got {layers!r}")
    for layer in layers:
        check_integer("layers", layer, 0)


def check_options(method: Method, given: dict[str, Any]) -> None:
    """InputError where an option is nobody's, or another method's."""
    check_choice("method", method, Method)
    settings = WindowSettings if method == "window" else Settings
    own = {field.name for field in fields(settings)} - {"method", "layers"}
    own = {name for name in own if ONE_METHODS.get(name, method) == method}
    for name in sorted(given.keys() - own):
        if name in Options.__annotations__ or name == "segment_length":
            raise InputError(f"{name}: not with method={method!r}")
        near = get_close_matches(name, own, 1, 0.75)
        meant = f", did you mean {near[0]}?" if near else ""
        raise InputError(
            f"{name}: no option of method={method!r}{meant} (they are {', '.join(sorted(own))})"
        )
