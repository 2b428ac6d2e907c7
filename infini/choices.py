"""The choices that the library offers, written once: what it takes, what params.yaml takes."""

from typing import Any, Literal, get_args

from infini.errors import InputError

# in a layer's place, beside it, or within its attention, which sees a window
Method = Literal["replace", "parallel", "window"]
Init = Literal["teacher", "random"]  # weights of a replaced layer: the base's own, or fresh ones
Update = Literal["linear", "delta"]  # rule of the memory's write
WindowUpdate = Literal["linear", "delta", "gated_delta"]  # of what leaves a window
LocalKind = Literal["softmax", "linear"]  # attention within a segment
# whose memory a document reads: its own, another's of the batch, or none's
MemoryUse = Literal["own", "swapped", "off"]
Position = Literal["none", "alibi", "rope"]  # positions within a segment


def check_choice(name: str, value: str, allowed: Any) -> None:
    """InputError that names the choices where a value is none of an alias's."""
    if value not in get_args(allowed):
        names = ", ".join(map(repr, get_args(allowed)))
        raise InputError(f"{name}: one of {names} is needed, got {value!r}")
