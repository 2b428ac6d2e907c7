"""Sections of params.yaml: the base, and where its memory goes."""

from typing import Annotated

from pydantic import Field

from infini.choices import LocalKind, Position, Update
from infini.schema import Section


class Base(Section):
    """The pretrained model that gets the memory."""

    # a folder written by save_pretrained, or a hub name
    model: str
    # commit, branch or tag on the hub; null: main
    revision: str | None = None


class Placement(Section):
    """Where the memory goes, and what its attention is like."""

    # decoder layers, from 0
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    # rule of the memory's write
    update: Update = "delta"
    # attention within a segment
    local: LocalKind = "softmax"
    # positions within a segment
    position: Position = "none"
