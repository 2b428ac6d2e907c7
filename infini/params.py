"""params.yaml as a whole: one typed section a stage, everything checked before any work.

`python -m infini.params` checks the file. A wrong value or an unknown key is one line that
names the key. The sections themselves are in the folders' `config.py`.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from infini.corpus.config import Data
from infini.errors import InputError
from infini.evaluation.config import Cost, Evaluate
from infini.model.config import Base
from infini.schema import Name, Section, Seed
from infini.training.config import (
    Adapter,
    AnyAdapter,
    Audit,
    Pretrain,
    Replacement,
    Version,
    WindowAdapter,
)

FILE = Path("params.yaml")

T = TypeVar("T")


class Params(Section):
    """The whole of params.yaml."""

    seed: Seed
    # further seeds that every version is trained with
    seeds: list[Seed]
    base: Base
    pretrain: Pretrain
    data: Data
    replacements: dict[Name, Replacement]
    adapters: dict[Name, AnyAdapter]
    evaluate: Evaluate
    cost: Cost
    audits: dict[Name, Audit]

    @property
    def versions(self) -> dict[str, Version]:
        """All of them, by name."""
        return {**self.replacements, **self.adapters}

    @model_validator(mode="after")
    def _audits(self) -> "Params":
        for name, audit in self.audits.items():
            try:
                audited(audit, self.versions)
            except InputError as error:
                raise InputError(f"audits.{name}.{error}") from None
        return self

    @model_validator(mode="after")
    def _sizes(self) -> "Params":
        """Nothing is asked for that is not prepared."""
        data, test = self.data, self.data.test
        limits = [
            (
                "data.segment_length",
                data.segment_length,
                "data.document_length",
                data.document_length,
            ),
            (
                "evaluate.short.samples",
                self.evaluate.short.samples,
                "data.test.samples",
                test.samples,
            ),
        ]
        scored = self.evaluate.documents
        limits.append(("evaluate.documents", scored, "data.test.documents", test.documents))
        for name, version in self.versions.items():
            key = (
                f"replacements.{name}.finetune" if name in self.replacements else f"adapters.{name}"
            )
            if (wanted := version.long.documents) is not None:
                limits.append((f"{key}.documents", wanted, "data.documents", data.documents))
        for key, value, other, most in limits:
            if value > most:
                raise InputError(f"{key}: at most {other}, {most}, got {value}")
        return self

    @model_validator(mode="after")
    def _names(self) -> "Params":
        if both := self.replacements.keys() & self.adapters.keys():
            raise InputError(f"adapters: {both.pop()!r} is a replacement's name: rename one")
        if "base" in self.versions:
            raise InputError("versions: 'base' is the untouched base's name: rename the version")
        return self


def audited(audit: Audit, versions: dict[str, Version]) -> Version:
    """An audit's recipe: its version's, with what it changes. InputError for what cannot be."""
    if (version := versions.get(audit.of)) is None:
        raise InputError(f"of: no version {audit.of!r}")
    if isinstance(version, WindowAdapter):
        raise InputError(f"of: {audit.of!r} reads by window, the log's loop is of segments")
    if "distill" not in version.steps and (audit.distill or audit.mistake == "padding_counted"):
        key = "distill" if audit.distill else "mistake"
        raise InputError(f"{key}: nothing of {audit.of!r} is distilled")
    try:
        return version.changed(audit)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        place = () if "distill" in version.steps else ("finetune",)
        key = ".".join(map(str, (*place, *first["loc"])))
        raise InputError(f"{key}: {_message(first)}") from None


def read(key: str, kind: type[T]) -> T:
    """The value of a dotted key, which is of `kind`; the whole file is checked first.

    Just these are what a stage depends on: dvc.yaml lists the same keys under `params`.
    """
    value = read_optional(key, kind)
    assert value is not None, f"{key} is null"
    return value


def read_optional(key: str, kind: type[T]) -> T | None:
    """`read`, of what may be null."""
    value: Any = load()
    for part in key.split("."):
        try:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        except (KeyError, AttributeError):
            raise InputError(f"{FILE}: {key}: no such key") from None
    wanted = get_origin(kind) or kind
    assert value is None or isinstance(value, wanted), f"{key} is a {type(value).__name__}"
    return value


def every_seed() -> list[int]:
    """What every version is trained with: `seed`, then the further `seeds`."""
    return list(dict.fromkeys([read("seed", int), *read("seeds", list[int])]))


def versions() -> dict[str, Version]:
    """Every version by name: `replacements`, then `adapters`."""
    return {
        **read("replacements", dict[str, Replacement]),
        **read("adapters", dict[str, Adapter]),
    }


def load() -> Params:
    """The whole file, checked. InputError: one line that names the first wrong key."""
    try:
        return _parse(FILE.read_text())
    except FileNotFoundError:
        raise InputError(f"{FILE}: not found; run from the repository's root") from None


@lru_cache(maxsize=1)
def _parse(text: str) -> Params:
    try:
        # YAML 1.2 as DVC writes it: 1e-05 is a number, which PyYAML takes for text.
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise InputError(f"{FILE}: not YAML: {' '.join(str(error).split())}") from None
    try:
        return Params.model_validate(content)
    except ValidationError as invalid:
        # A misspelt key is missing too: its name is the more helpful of the two.
        first = min(invalid.errors(), key=lambda error: error["type"] != "extra_forbidden")
        key = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
        raise InputError(f"{FILE}: {key}{_message(first)}") from None


def _message(error: Any) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "unknown key; remove it or correct its name"
        case "missing":
            return "is missing; add it"
        case "value_error":
            return str(error["ctx"]["error"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


if __name__ == "__main__":
    try:
        load()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
