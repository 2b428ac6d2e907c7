"""Types that the sections of params.yaml share, and the one line that an invalid value gets."""

import difflib
import json
from collections.abc import Iterable
from typing import Annotated, Any, TypeGuard, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import ErrorDetails

from infini.errors import InputError, shown

Positive = Annotated[int, Field(ge=1, le=10**9)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


def _check_different(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        written = [x.model_dump() if isinstance(x, BaseModel) else x for x in values]
        raise InputError(f"must all differ, got {shown(written)}")
    return values


Different = AfterValidator(_check_different)


def unknown_key(key: Any, known: Iterable[str]) -> str:
    """Return the message about a key that no field has, with the most similar known one."""
    key = key if isinstance(key, str) else json.dumps(key, default=str)  # as YAML writes it
    close = difflib.get_close_matches(key.lower(), known, 1)
    return f"{key}: unknown key; {f'did you mean {close[0]}?' if close else 'remove it'}"


class Section(BaseModel):
    """Base class of a block of params.yaml: no unknown keys, no conversions, finite numbers.

    The message of a validator's InputError begins with the key within the block, or with "must".
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, block: Any) -> Any:
        """Name a misspelt key, rather than the required one that is missing because of it."""
        for key in block if isinstance(block, dict) else ():
            if key not in cls.model_fields:
                raise InputError(unknown_key(key, cls.model_fields))
        return block

    @classmethod
    def required_keys(cls) -> list[str]:
        """Return the dotted keys within the block that have no default."""
        keys = list[str]()
        for name, field in cls.model_fields.items():
            if field.is_required():
                kind = field.annotation
                inner = kind.required_keys() if _is_section(kind) else []
                keys += [f"{name}.{key}" for key in inner] or [name]
        return keys


def _is_section(kind: Any) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)


def missing_keys(section: type[Section], key: list[str]) -> list[str]:
    """Return the dotted keys to add where a validation misses `key`: those of a whole block.

    Args:
        section: the section that was validated.
        key: the missing key's parts, from that section on.
    """
    kind: Any = section
    for part in key:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            field = kind.model_fields.get(part) if _is_section(kind) else None
            kind = field and field.annotation
    inner = kind.required_keys() if _is_section(kind) else []
    return [".".join([*key, name]) for name in inner] or [".".join(key)]


def error_line(key: str, error: ErrorDetails) -> str:
    """Return a validation error of a dotted key as one line: key, message, value."""
    message = error["msg"]
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        joint = " " if message.startswith("must ") else "." if key else ""
    else:
        joint = ": " if key else ""
        if error["type"] not in ("missing", "union_tag_invalid", "union_tag_not_found"):
            message += f", got {shown(error['input'])}"
    line = " ".join(f"{key}{joint}{message}".split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
