"""Values that the library's options and params.yaml may take, and checks of an option's value."""

from typing import Any, Literal, get_args

from infini.errors import InputError, shown

# replace: attention of ours in a layer's place; parallel: a memory beside a layer;
# window: the base's own attention sees a window, a memory has what left it
Method = Literal["replace", "parallel", "window"]
Init = Literal["teacher", "random"]  # weights of a replaced layer: the base's own, or fresh ones
Update = Literal["linear", "delta"]  # write rule of the memory
WindowUpdate = Literal["linear", "delta", "gated_delta", "none"]  # none: no matrix
# built-in retention policies; the classes are in infini.memory.eviction
Policy = Literal[
    "a2sf",
    "adakv",
    "cascading",
    "curdkv",
    "decayed_attention",
    "expected_attention",
    "h2o",
    "keydiff",
    "knorm",
    "lagkv",
    "learned",
    "learned_no_attention",
    "observed_attention",
    "q_filter",
    "random",
    "rkv",
    "snapkv",
    "tova",
]
LocalKind = Literal["softmax", "linear"]  # attention within a segment
Position = Literal["none", "alibi", "rope"]  # positions within a segment
# memory that a document reads: its own, another document's (of the same batch), or none
MemoryMode = Literal["own", "swapped", "off"]
Objective = Literal["cross_entropy", "distillation"]
Precision = Literal["float32", "bfloat16"]  # of products; weights and sums are float32

# Architectures (a config's `model_type`) whose layers `replace` knows how to call.
REPLACEABLE = ("gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gpt2")
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
RETENTION_BLOCK = 32  # tokens that read the same retained pairs behind a window


def check_choice(name: str, value: str, allowed: Any) -> None:
    """Raise InputError if `value` is none of the values of the Literal `allowed`."""
    if value not in get_args(allowed):
        names = ", ".join(map(repr, get_args(allowed)))
        raise InputError(f"{name} must be one of {names}, got {shown(value)}")


def check_integer(name: str, value: Any, minimum: int) -> None:
    """Raise InputError if `value` is no integer, or below `minimum`."""
    if type(value) is not int:
        raise InputError(f"{name} must be an integer ≥ {minimum}, got {shown(value)}")
    if value < minimum:
        raise InputError(f"{name} must be ≥ {minimum}, got {value}")


def check_finite(name: str, value: Any) -> None:
    """Raise InputError if `value` is no number, or none that float32 holds."""
    if type(value) not in (int, float) or not abs(value) <= FLOAT32_MAX:
        raise InputError(f"{name} must be a finite float32 number, got {shown(value)}")


def check_bool(name: str, value: Any) -> None:
    """Raise InputError if `value` is neither True nor False."""
    if type(value) is not bool:
        raise InputError(f"{name} must be True or False, got {shown(value)}")
