"""params.yaml as a whole: one typed section a stage, everything checked before any work.

`check` looks at the base and the text that the file names too. A wrong value or an unknown key
is one line: key, what is needed, value. The sections themselves are in the folders' `config.py`.
"""

from contextlib import chdir
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from infini.choices import REPLACEABLE
from infini.corpus.config import Data
from infini.corpus.inputs import text_files
from infini.errors import InputError
from infini.evaluation.config import Cost, Evaluate
from infini.model.base_info import base_info
from infini.model.config import Base
from infini.schema import Name, Section, Seed, explain, printable
from infini.training.config import (
    Adapter,
    AnyAdapter,
    Replacement,
    VersionConfig,
    WindowAdapter,
)
from infini.training.pretraining_config import Pretrain

FILE = Path("params.yaml")

T = TypeVar("T")


class Params(Section):
    """The whole of params.yaml."""

    seed: Seed
    # further seeds that every version is trained with
    seeds: list[Seed]
    base: Base
    # only where the base is trained here
    pretrain: Pretrain | None = None
    data: Data
    replacements: dict[Name, Replacement]
    adapters: dict[Name, AnyAdapter]
    evaluate: Evaluate
    cost: Cost

    @property
    def versions(self) -> dict[str, VersionConfig]:
        """All of them, by name."""
        return {**self.replacements, **self.adapters}

    def section(self, version: str) -> str:
        """The key under which a version is."""
        return "replacements" if version in self.replacements else "adapters"

    def contexts(self) -> dict[str, int]:
        """What the base must read at once, in tokens, by the key that asks for it."""
        wanted = {"data.segment_length": self.data.segment_length}
        for name, protocol in self.evaluate:
            if (tokens := getattr(protocol, "context", None)) is not None:
                wanted[f"evaluate.{name}.context"] = tokens
        window = self.evaluate.window
        wanted["evaluate.window: sizes + sinks"] = max(window.sizes) + window.sinks
        for name, version in self.versions.items():
            if isinstance(version, WindowAdapter):
                sinks = version.layer.sinks
                wanted[f"adapters.{name}.layer: window + sinks"] = version.layer.window + sinks
                if version.windows:
                    wanted[f"adapters.{name}.windows + sinks"] = max(version.windows) + sinks
                if window.extra_sizes:
                    wanted["evaluate.window.extra_sizes + sinks"] = max(window.extra_sizes) + sinks
        return wanted

    @model_validator(mode="after")
    def _names(self) -> "Params":
        if both := self.replacements.keys() & self.adapters.keys():
            raise InputError(f"adapters.{min(both)}: is a replacement's name too: rename one")
        if "base" in self.versions:
            key = f"{self.section('base')}.base"
            raise InputError(f"{key}: is the untouched base's name: rename the version")
        return self

    @model_validator(mode="after")
    def _seeds(self) -> "Params":
        if len({self.seed, *self.seeds}) < 1 + len(self.seeds):
            raise InputError(
                f"seeds: different ones, also from seed ({self.seed}), are needed, got {self.seeds}"
            )
        for name, adapter in self.adapters.items():
            if len({self.seed, *self.seeds, *adapter.seeds}) < 1 + len(self.seeds + adapter.seeds):
                raise InputError(
                    f"adapters.{name}.seeds: different ones, also from seed and seeds, are needed, "
                    f"got {adapter.seeds}"
                )
        return self

    @model_validator(mode="after")
    def _sizes(self) -> "Params":
        """Nothing is asked for that is not prepared."""
        data, evaluate = self.data, self.evaluate
        trained = {
            f"{self.section(name)}.{name}{'.finetune' * (name in self.replacements)}.documents": n
            for name, version in self.versions.items()
            if (n := version.long.documents) is not None
        }
        limits: dict[tuple[str, int], dict[str, int]] = {
            ("data.document_length", data.document_length): {
                "data.segment_length": data.segment_length
            },
            ("data.test.samples", data.test.samples): {
                "evaluate.short.samples": evaluate.short.samples
            },
            ("data.test.documents", data.test.documents): {
                "evaluate.documents": evaluate.documents
            },
            ("data.documents", data.documents): trained,
        }
        for (other, most), wanted in limits.items():
            for key, value in wanted.items():
                if value > most:
                    raise InputError(f"{key}: at most {other}, {most}, got {value}")
        for name, adapter in self.adapters.items():
            if missing := adapter.missing(
                data.documents, data.document_length, data.segment_length
            ):
                raise InputError(f"adapters.{name}.{missing}")
        if self.pretrain is not None and self.pretrain.width % self.pretrain.heads:
            raise InputError(
                f"pretrain.width: a multiple of pretrain.heads, {self.pretrain.heads}, is needed, "
                f"got {self.pretrain.width}"
            )
        return self


def read(key: str, kind: type[T]) -> T:
    """The value of a dotted key, which is of `kind`; the whole file is checked first.

    Just these are what a stage depends on: dvc.yaml lists the same keys under `params`.
    """
    value = read_optional(key, kind)
    if value is None:
        raise InputError(f"{FILE}: {key}: is null or missing, a value is needed")
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
    return [read("seed", int), *read("seeds", list[int])]


def versions() -> dict[str, VersionConfig]:
    """Every version by name: `replacements`, then `adapters`."""
    return {
        **read("replacements", dict[str, Replacement]),
        **read("adapters", dict[str, Adapter]),
    }


def options_of(version: str) -> dict[str, Any]:
    """What a version gives to `infini.retrofit`, to hold what was trained against it.

    No stage's figures depend on it. InputError where there is no such version.
    """
    known = load().versions
    if version not in known:
        raise InputError(f"{version}: no such version in {FILE}: base or one of {', '.join(known)}")
    return known[version].retrofit_options(load().data.segment_length)


def load(file: Path = FILE) -> Params:
    """The whole file, checked. InputError: one line that names the first wrong key."""
    try:
        return _parse(file.read_text(encoding="utf-8"), file)
    except FileNotFoundError:
        raise InputError(
            f"{file}: not found; run from the repository's root, or a study's folder"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not readable as UTF-8 text: {error}") from None


@lru_cache(maxsize=1)
def _parse(text: str, file: Path) -> Params:
    try:
        # YAML 1.2 as DVC writes it: 1e-05 is a number, which PyYAML takes for text.
        content = YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        key, line = error.problem.split('"')[1], error.problem_mark.line + 1
        raise InputError(f"{file}: {key}: is there twice, again in line {line}; keep one") from None
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    try:
        return Params.model_validate(content)
    except ValidationError as invalid:
        message = explain(Params, _first(invalid))
        raise InputError(f"{file}: {printable(message)}") from None


def _first(invalid: ValidationError) -> Any:
    """The error to tell: a misspelt key is missing too, and its name is the more helpful."""
    return min(invalid.errors(), key=lambda error: error["type"] != "extra_forbidden")


def check(file: Path = FILE) -> Params:
    """`load`, and whether base and text are there and can do what is asked; InputError if not.

    Their paths are relative to the file's folder, where its stages run.
    """
    params = load(file)
    try:
        with chdir(file.parent):
            _check_base(params)
            text_files(params.data.corpus)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return params


def _check_base(params: Params) -> None:
    """InputError where a base in a folder cannot do what a key asks of it."""
    if (base := base_info(params.base.model, params.base.revision)) is None:
        return
    name = params.base.model
    for key, tokens in params.contexts().items():
        if base.context is not None and tokens > base.context:
            raise InputError(
                f"{key}: up to {base.context:,} tokens, the context of {name!r}, got {tokens:,}"
            )
    for version, recipe in params.versions.items():
        key = f"{params.section(version)}.{version}"
        options = recipe.retrofit_options(params.data.segment_length)
        for index in options.get("layers") or ():
            if base.layers is not None and index >= base.layers:
                raise InputError(
                    f"{key}.layer.layers: 0 to {base.layers - 1}, the layers of {name!r}, "
                    f"got {index}"
                )
        if options["method"] == "replace" and base.kind not in REPLACEABLE:
            raise InputError(
                f"{key}: a layer of {base.kind} ({name!r}) cannot be replaced, of "
                f"{', '.join(REPLACEABLE)} it can; make it an adapter, or remove it"
            )
