"""The choices that the library offers, written once: what it takes, what params.yaml takes."""

from typing import Any, Literal, get_args

from infini.errors import InputError

# in a layer's place, beside it, or within its attention, which sees a window
Method = Literal["replace", "parallel", "window"]
Init = Literal["teacher", "random"]  # weights of a replaced layer: the base's own, or fresh ones
Update = Literal["linear", "delta"]  # rule of the memory's write
# of what leaves a window; "none": there is no matrix
WindowUpdate = Literal["linear", "delta", "gated_delta", "none"]
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
RETENTION_BLOCK = 32  # tokens that see the same kept pairs behind a window
LocalKind = Literal["softmax", "linear"]  # attention within a segment
# whose memory a document reads: its own, another's of the batch, or none's
MemoryMode = Literal["own", "swapped", "off"]
Objective = Literal["cross_entropy", "distillation"]
Precision = Literal["float32", "bfloat16"]  # of products; weights and sums are float32
Position = Literal["none", "alibi", "rope"]  # positions within a segment

# Architectures (a config's `model_type`) whose layers `replace` knows how to call.
REPLACEABLE = ("gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gpt2")


def check_choice(name: str, value: str, allowed: Any) -> None:
    """InputError that names the choices where a value is none of an alias's."""
    if value not in get_args(allowed):
        names = ", ".join(map(repr, get_args(allowed)))
        raise InputError(f"{name}: one of {names} is needed, got {value!r}")


def check_whole(name: str, value: Any, least: int) -> None:
    """InputError where a value is no whole number, or less than `least`."""
    if type(value) is not int or value < least:
        raise InputError(f"{name}: a whole number from {least} on is needed, got {value!r}")


def check_finite_number(name: str, value: Any) -> None:
    """InputError where a value is no number, or none that float32 holds."""
    if type(value) not in (int, float) or not abs(value) <= FLOAT32_MAX:
        huge = type(value) is int and abs(value) > 10**40  # Python does not write any number
        shown = "a larger one" if huge else repr(value)
        raise InputError(f"{name}: a finite number, in float32, is needed, got {shown}")


def check_yes_no(name: str, value: Any) -> None:
    """InputError where a value is neither True nor False."""
    if type(value) is not bool:
        raise InputError(f"{name}: True or False is needed, got {value!r}")
