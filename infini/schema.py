"""What every section of params.yaml is made of: strict, frozen, and no key that nobody knows.

Also the one line that a wrong value gets: what is needed, with its range, read off the types.
"""

import difflib
import re
import reprlib
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

Positive = Annotated[int, Field(ge=1, le=10**9)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


def _different(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError(f"different ones are needed, got {shown(values)}")
    return values


Different = AfterValidator(_different)  # of a list: none twice

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
WORDS |= {NoneType: "null", Any: "anything"}

# A value in a message: of one that its anchors make endless, the beginning
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict = 4, 16, 16
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


class Section(BaseModel):
    """A block of params.yaml: no unknown keys, no silent conversions, finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def explain(kind: Any, error: ErrorDetails) -> str:
    """A validation error of `kind` as `key: what is needed, got value`."""
    way = list(_way(kind, error["loc"]))
    found = way[-1][1] if way else kind
    message = _message(found, error)
    place = ".".join(str(part) for part, _ in way)
    if not place:
        return message
    # A block's own check, or its choice among a union's, begins with the key that is wrong.
    known = {field for block in _blocks(found) for field in block.model_fields}
    within = re.match(r"[\w.]+(?=:)", message)
    return f"{place}{'.' if within and within[0].split('.')[0] in known else ': '}{message}"


def printable(text: str) -> str:
    """A text, which a key of the user may be in, as one line without control characters."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _message(kind: Any, error: ErrorDetails) -> str:
    match error["type"]:
        case "extra_forbidden":
            known = next(_blocks(kind)).model_fields
            close = difflib.get_close_matches(str(error["loc"][-1]).lower(), known, 1, 0.5)
            meant = f"did you mean {close[0]}?" if close else "remove it"
            return f"unknown key; {meant} (known: {', '.join(known)})"
        case "missing":
            return f"is missing; add it: {needed(kind)}"
        case "value_error":
            return str(error["ctx"]["error"])
        case "union_tag_invalid" | "union_tag_not_found":
            name = error["ctx"]["discriminator"].strip("'")
            tags = [
                getattr(block.model_fields[name], "annotation", None) for block in _blocks(kind)
            ]
            values = ", ".join(repr(value) for tag in tags for value in get_args(tag))
            return f"{name}: one of {values} is needed, got {shown(error['ctx'].get('tag'))}"
    return f"{needed(kind)} is needed, got {shown(error['input'])}"


def shown(value: Any) -> str:
    """A value as YAML has it, as far as a line holds it."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else _SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def needed(kind: Any) -> str:
    """What a key takes, in words, its range included."""
    plain, limits = _bare(kind)
    if options := _options(kind):
        return " or ".join(dict.fromkeys(needed(option) for option in options))
    arguments = get_args(plain)
    origin = get_origin(plain)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is list:
        least = next((x.min_length for x in limits if hasattr(x, "min_length")), 0)
        return f"a list of {least} or more (each {needed(arguments[0])})"
    if origin is dict:
        return "a block of names"
    if _is_block(plain):
        return f"a block of {', '.join(plain.model_fields)}"
    if any(getattr(limit, "pattern", None) == NAME for limit in limits):
        return "a name of up to 64 letters, digits, - and _"
    return f"{WORDS[plain]}{_range(limits)}"


def _range(limits: list[Any]) -> str:
    """A number's limits in words, nothing without."""
    ends = {
        name: f"{value:,}" if isinstance(value, int) else f"{value:g}"
        for limit in limits
        for name in ("ge", "gt", "le")
        if (value := getattr(limit, name, None)) is not None
    }
    low = f" from {ends['ge']}" if "ge" in ends else f" above {ends['gt']}" if "gt" in ends else ""
    if "le" in ends:
        return f"{low} to {ends['le']}" if "ge" in ends else f"{low} up to {ends['le']}"
    return f"{low} on" if "ge" in ends else low


def _bare(kind: Any) -> tuple[Any, list[Any]]:
    """A type without its annotations, and these."""
    if get_origin(kind) is not Annotated:
        return kind, []
    plain, *annotations = get_args(kind)
    limits: list[Any] = []
    for annotation in annotations:
        limits += annotation.metadata if isinstance(annotation, FieldInfo) else [annotation]
    return plain, limits


def _is_block(plain: Any) -> bool:
    return isinstance(plain, type) and issubclass(plain, Section)


def _options(kind: Any) -> tuple[Any, ...]:
    """The members of a union; empty for what is none."""
    plain, _ = _bare(kind)
    return get_args(plain) if get_origin(plain) in (Union, UnionType) else ()


def _way(kind: Any, location: Sequence[str | int]) -> Iterator[tuple[str | int, Any]]:
    """Each key down to an error, and the type there; of an unknown key, that of its block."""
    for number, part in enumerate(location):
        if part == "[key]":
            continue
        below = next(_below(kind, part), None)
        if below is None and (block := next(_tagged(kind, part), None)):
            kind = block  # which of a union's blocks: no key of the file
            continue
        kind = kind if below is None else below
        wrong_name = "[key]" in location[number + 1 : number + 2]
        yield part, Name if wrong_name else kind


def _below(kind: Any, part: str | int) -> Iterator[Any]:
    """The type of what a key or an index leads to."""
    for option in _options(kind) or (kind,):
        plain, _ = _bare(option)
        arguments = get_args(plain)
        if _options(option):
            yield from _below(option, part)
        elif get_origin(plain) is list and isinstance(part, int):
            yield arguments[0]
        elif get_origin(plain) is dict:
            yield arguments[1]
        elif _is_block(plain) and (field := plain.model_fields.get(str(part))):
            yield Annotated[field.annotation, field] if field.metadata else field.annotation


def _blocks(kind: Any) -> Iterator[type[Section]]:
    """The blocks that a type allows."""
    for option in _options(kind) or (kind,):
        plain, _ = _bare(option)
        if _is_block(plain):
            yield plain


def _tagged(kind: Any, tag: str | int) -> Iterator[type[Section]]:
    """The block of a union that pydantic calls so: by a field's literal, or the class's name."""
    for block in _blocks(kind):
        literals = (field.annotation for field in block.model_fields.values())
        if tag == block.__name__ or any(
            tag in get_args(one) for one in literals if get_origin(one) is Literal
        ):
            yield block
