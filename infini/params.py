"""params.yaml as a whole: composes the sections of the folders' config.py and validates them.

An invalid value is one line with key, message and value, before any work and without torch.
`check_params` looks at the base and the corpus that the file names as well.
"""

from contextlib import chdir
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar, get_origin

from pydantic import Field, ValidationError, model_validator
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
from infini.schema import Name, Section, Seed, error_line
from infini.training.config import (
    Adapter,
    AnyAdapter,
    Replacement,
    VersionConfig,
    WindowAdapter,
)
from infini.training.pretraining_config import Pretrain

PARAMS_FILE = Path("params.yaml")

_T = TypeVar("_T")


class Params(Section):
    """All sections of params.yaml."""

    seed: Seed
    # seeds beside `seed` that every version is trained with
    seeds: list[Seed]
    base: Base
    # only where stage pretrain_base trains the base
    pretrain: Pretrain | None = None
    data: Data
    # versions that `make run` leaves out; `dvc repro` runs them too
    on_demand: list[Name] = Field(default_factory=list)
    replacements: dict[Name, Replacement]
    adapters: dict[Name, AnyAdapter]
    evaluate: Evaluate
    cost: Cost

    @property
    def versions(self) -> dict[str, VersionConfig]:
        """Every version's settings by name."""
        return {**self.replacements, **self.adapters}

    def key_of(self, version: str) -> str:
        """Return the dotted key of a version."""
        section = "replacements" if version in self.replacements else "adapters"
        return f"{section}.{version}"

    def targets(self) -> list[str]:
        """Return the evaluation stages of dvc.yaml that `make run` asks for."""
        wanted = [name for name in self.versions if name not in self.on_demand]
        kinds = dict.fromkeys(self.replacements, "replacement")
        stages = [f"evaluate_ppl_{kinds.get(name, 'adapter')}@{name}" for name in wanted]
        return ["evaluate_ppl_base", *stages]

    def contexts(self) -> dict[str, int]:
        """Return how many tokens the base has to read at once, by the key that asks for it."""
        evaluate = self.evaluate
        tokens = {
            "data.segment_length": self.data.segment_length,
            "evaluate.full.context": evaluate.full.context,
            "evaluate.window.sizes + sinks": max(evaluate.window.sizes) + evaluate.window.sinks,
        }
        for name, version in self.adapters.items():
            if isinstance(version, WindowAdapter):
                sinks = version.layer.sinks
                tokens[f"adapters.{name}.layer.window + sinks"] = version.layer.window + sinks
                if version.windows:
                    tokens[f"adapters.{name}.windows + sinks"] = max(version.windows) + sinks
                if extra := evaluate.window.extra_sizes:
                    tokens["evaluate.window.extra_sizes + sinks"] = max(extra) + sinks
        return tokens

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if both := self.replacements.keys() & self.adapters.keys():
            name = min(both)
            raise InputError(f"adapters.{name}: replacements.{name} has this name too; rename one")
        if "base" in self.versions:
            raise InputError(f"{self.key_of('base')}: base is the untouched base's name; rename it")
        return self

    @model_validator(mode="after")
    def _check_on_demand(self) -> Self:
        for name in self.on_demand:
            if name not in self.versions:
                names = ", ".join(self.versions)
                raise InputError(f"on_demand must be versions ({names}), got {name!r}")
        return self

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        own = {"seeds": list[int]()}
        own |= {f"adapters.{name}.seeds": adapter.seeds for name, adapter in self.adapters.items()}
        for key, seeds in own.items():
            every = [self.seed, *self.seeds, *seeds]
            if len(set(every)) < len(every):
                raise InputError(f"{key} must differ from each other and all seeds, got {every}")
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        """No stage asks for more than is prepared."""
        data, evaluate = self.data, self.evaluate
        limits = [
            ("data.segment_length", data.segment_length, "document_length", data.document_length),
            ("evaluate.short.samples", evaluate.short.samples, "test.samples", data.test.samples),
            ("evaluate.documents", evaluate.documents, "test.documents", data.test.documents),
        ]
        for name, version in self.versions.items():
            key = f"{self.key_of(name)}{'.finetune' * isinstance(version, Replacement)}.documents"
            used = version.document_recipe.documents
            limits.append((key, used or 0, "documents", data.documents))
        for key, value, other, limit in limits:
            if value > limit:
                raise InputError(f"{key} must be ≤ data.{other} ({limit}), got {value}")
        for name, adapter in self.adapters.items():
            try:
                adapter.check_documents(data.documents, data.document_length, data.segment_length)
            except InputError as error:
                raise InputError(f"adapters.{name}.{error}") from None
        return self


def get(key: str, kind: type[_T]) -> _T:
    """Return the value of a dotted key of params.yaml, which is validated as a whole.

    A stage depends on the keys that it gets: dvc.yaml lists the same ones under `params`.

    Args:
        key: dotted key, such as "data.segment_length".
        kind: type of the value.

    Raises:
        InputError: the file is invalid, or the key is missing or null.
    """
    value = get_optional(key, kind)
    if value is None:
        raise InputError(f"{PARAMS_FILE}: {key} must have a value, got null")
    return value


def get_optional(key: str, kind: type[_T]) -> _T | None:
    """Return the value of a dotted key that may be null, see `get`."""
    value: Any = load_params()
    for part in key.split("."):
        try:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        except (KeyError, AttributeError):
            raise InputError(f"{PARAMS_FILE}: {key}: no such key") from None
    expected = get_origin(kind) or kind
    assert value is None or isinstance(value, expected), f"{key} is a {type(value).__name__}"
    return value


def all_seeds() -> list[int]:
    """Return the seeds that every version is trained with."""
    return [get("seed", int), *get("seeds", list[int])]


def all_versions() -> dict[str, VersionConfig]:
    """Return every version's settings by name: `replacements`, then `adapters`."""
    return {
        **get("replacements", dict[str, Replacement]),
        **get("adapters", dict[str, Adapter]),
    }


def version_options(version: str) -> dict[str, Any]:
    """Return a version's arguments of `infini.retrofit`, which a trained model is checked against.

    No stage's figures depend on them, hence none lists them under `params`.

    Raises:
        InputError: there is no such version.
    """
    known = load_params().versions
    if version not in known:
        names = ", ".join(["base", *known])
        raise InputError(f"version must be one of {names} (see {PARAMS_FILE}), got {version}")
    return known[version].retrofit_options(load_params().data.segment_length)


def load_params(file: Path = PARAMS_FILE) -> Params:
    """Read and validate the whole file.

    Raises:
        InputError: one line that names the first invalid key.
    """
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
        # YAML 1.2 as DVC writes it: 1e-05 is a number, PyYAML (1.1) reads a string.
        content = YAML(typ="safe", pure=True).load(text)
    except DuplicateKeyError as error:
        key, line = error.problem.split('"')[1], error.problem_mark.line + 1
        raise InputError(f"{file}: {key}: duplicate key in line {line}; keep one") from None
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    try:
        return Params.model_validate(content)
    except ValidationError as invalid:
        # The first error that is no missing key: a key moved to the wrong block is missing too.
        errors = sorted(invalid.errors(), key=lambda error: error["type"] == "missing")
        # pydantic adds the method of an adapter to the location, and "[key]" to a name's.
        parts = [str(part) for part in errors[0]["loc"]]
        if parts[:1] == ["adapters"] or parts[-1:] == ["[key]"]:
            del parts[2:3]
        raise InputError(f"{file}: {error_line('.'.join(parts), errors[0])}") from None


def check_params(file: Path = PARAMS_FILE) -> Params:
    """Load the file and check it against the base and the corpus that it names.

    Args:
        file: path of the file; paths in it are relative to its folder, where its stages run.

    Raises:
        InputError: one line that names the first invalid key.
    """
    params = load_params(file)
    try:
        with chdir(file.parent):
            _check_base(params)
            text_files(params.data.corpus)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return params


def _check_base(params: Params) -> None:
    """Raise InputError if the base's config rules out what a key asks of it."""
    if (base := base_info(params.base.model, params.base.revision)) is None:
        return
    name = params.base.model
    for key, tokens in params.contexts().items():
        if base.context is not None and tokens > base.context:
            raise InputError(
                f"{key} must be ≤ {base.context}, the context of {name!r}, got {tokens}"
            )
    for version, config in params.versions.items():
        key = params.key_of(version)
        layers = config.retrofit_options(params.data.segment_length)["layers"] or [0]
        if base.layers is not None and max(layers) >= base.layers:
            raise InputError(
                f"{key}.layer.layers must be < {base.layers}, the number of layers of {name!r}, "
                f"got {layers}"
            )
        if version in params.replacements and base.model_type not in REPLACEABLE:
            raise InputError(
                f"{key}: method replace needs a base of {', '.join(REPLACEABLE)}, {name!r} is "
                f"{base.model_type}; make it an adapter, or remove it"
            )
