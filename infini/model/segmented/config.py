"""Options of `retrofit` with method="parallel" and method="replace"."""

from dataclasses import dataclass
from typing import ClassVar

from infini.choices import (
    Init,
    LocalKind,
    Method,
    Position,
    Update,
    check_bool,
    check_choice,
    check_finite,
    check_integer,
)
from infini.errors import InputError
from infini.model.retrofit_config import RetrofitConfig


@dataclass(frozen=True)
class SegmentedConfig(RetrofitConfig):
    """Options of an Infini-attention layer (arXiv 2404.07143), in parallel to a layer or in place.

    `layers` are those that get one; None: the first.
    """

    # Length of a segment, after which its keys and values are written to the memory; in tokens
    segment_length: int = 256

    # Write rule of the memory
    update: Update = "delta"

    # Attention within a segment
    local: LocalKind = "softmax"

    # Positions of the local attention; None: the base's own with init="teacher", else "none"
    position: Position | None = None

    # True: every layer sees one segment and only the memory crosses segments;
    # False: the other layers keep their full attention
    segmented: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers == []:
            raise InputError("layers must name at least one layer, got []")
        check_integer("segment_length", self.segment_length, 1)
        check_choice("update", self.update, Update)
        check_choice("local", self.local, LocalKind)
        if self.position is not None:
            check_choice("position", self.position, Position)
        check_bool("segmented", self.segmented)


@dataclass(frozen=True)
class ParallelConfig(SegmentedConfig):
    """Options of method="parallel": layer(x) + α · attention(norm(x))."""

    method: ClassVar[Method] = "parallel"

    # Initial value of the trainable factor α; 0.0: the retrofitted model starts as the base
    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("alpha", self.alpha)


@dataclass(frozen=True)
class ReplaceConfig(SegmentedConfig):
    """Options of method="replace": a copy of the layer whose attention is Infini-attention."""

    method: ClassVar[Method] = "replace"

    # Initial weights; "teacher": those of the replaced layer, "random": fresh ones
    init: Init = "teacher"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("init", self.init, Init)
        if self.init == "teacher" and self.local != "softmax":
            raise InputError(f"local must be 'softmax' with init='teacher', got {self.local!r}")
