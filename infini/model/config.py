"""Sections of params.yaml: the base, and where its memory goes."""

from typing import Annotated

from pydantic import Field, model_validator

from infini.choices import LocalKind, Position, Precision, Update, WindowUpdate
from infini.errors import InputError
from infini.schema import Different, Positive, Section

Layers = Annotated[list[Annotated[int, Field(ge=0, le=1_000)]], Field(min_length=1), Different]


class Base(Section):
    """The pretrained model that gets the memory."""

    # a folder written by save_pretrained, or a hub name
    model: str
    # commit, branch or tag on the hub; null: main
    revision: str | None = None
    # of matrix products, in training and evaluation; bfloat16: where the processor is fast at it
    precision: Precision = "float32"


class Placement(Section):
    """Where the memory goes, and what its attention is like."""

    # decoder layers, from 0
    layers: Layers
    # rule of the memory's write
    update: Update = "delta"
    # attention within a segment
    local: LocalKind = "softmax"
    # positions within a segment
    position: Position = "none"


class WindowPlacement(Section):
    """A window in every layer, and which layers have a memory of what has left it."""

    # decoder layers with a memory, from 0; null: all
    layers: Layers | None = None
    # tokens that a layer sees, the own one included
    window: Positive
    # first tokens of a text, seen for ever
    sinks: Annotated[int, Field(ge=0, le=10**6)]
    # rule of the memory's write; none: no matrix
    update: WindowUpdate = "delta"
    # pairs of key and value a head that stay exact behind the window
    retained: Annotated[int, Field(ge=0, le=2**16)] = 0

    @model_validator(mode="after")
    def _memory(self) -> "WindowPlacement":
        if self.update == "none" and not self.retained:
            raise InputError("update: none needs kept pairs: there is no memory to train otherwise")
        return self
