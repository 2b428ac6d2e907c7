"""params.yaml as a whole: composes the sections of the folders' config.py and validates them.

An invalid value is one line with key, message and value, before any work.
`check_params` looks at the base and the corpus that the file names as well.
"""

import os
from contextlib import chdir
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar, get_origin

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from infini.choices import REPLACEABLE, RETENTION_BLOCK
from infini.corpus.config import Data
from infini.corpus.inputs import text_files
from infini.errors import InputError
from infini.evaluation.config import Cost, Evaluate, PoliciesProtocol, RulerProtocol
from infini.model.base_info import base_info
from infini.model.config import Base
from infini.schema import Name, Section, Seed, error_line, missing_keys
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
    # no default: dvc.yaml reads the keys of these three
    policies: PoliciesProtocol
    policy_curve: PoliciesProtocol
    ruler: RulerProtocol
    evaluate: Evaluate
    cost: Cost = Cost()

    @property
    def versions(self) -> dict[str, VersionConfig]:
        """Every version's settings by name."""
        return {**self.replacements, **self.adapters}

    def key_of(self, version: str) -> str:
        """Return the dotted key of a version."""
        section = "replacements" if version in self.replacements else "adapters"
        return f"{section}.{version}"

    def recipe_key(self, version: str) -> str:
        """Return the dotted key of a version's training on long documents."""
        return self.key_of(version) + ".finetune" * (version in self.replacements)

    @property
    def needs_teacher(self) -> bool:
        """Whether a version is trained on the teacher's log-probabilities."""
        recipes = [version.document_recipe for version in self.versions.values()]
        return any(recipe.objective == "distillation" for recipe in recipes)

    def targets(self) -> list[str]:
        """Return the evaluation stages of dvc.yaml that `make run` asks for."""
        wanted = [name for name in self.versions if name not in self.on_demand]
        kinds = dict.fromkeys(self.replacements, "replacement")
        stages = [f"evaluate_ppl_{kinds.get(name, 'adapter')}@{name}" for name in wanted]
        policies, curve, ruler = self.policies, self.policy_curve, self.ruler
        stages += [
            f"{stage}@{name}-budget{index}"
            for stage, names, budgets in (
                ("evaluate_policies", policies.names, policies.budgets),
                ("evaluate_policies_curve", curve.names, curve.budgets),
                ("evaluate_retrieval", ruler.policies, ruler.budgets),
            )
            for name in names
            for index in range(len(budgets))
        ]
        return ["evaluate_ppl_base", *stages]

    def contexts(self) -> dict[str, int]:
        """Return how many tokens the base has to read at once, by the key that asks for it."""
        return {
            "data.segment_length": self.data.segment_length,
            "evaluate.full.context": self.evaluate.full.context,
        }

    def window_contexts(self) -> dict[str, int]:
        """Return how many tokens a query attends to within a window, by the key of the window."""
        window = self.evaluate.window
        tokens = {"evaluate.window.sizes + sinks": max(window.sizes) + window.sinks}
        for name, version in self.adapters.items():
            if not isinstance(version, WindowAdapter):
                continue
            # with retained pairs, all tokens of a block attend to one window
            more = f" + {RETENTION_BLOCK - 1} for retained pairs" if version.layer.retained else ""
            for key, sizes in {
                f"adapters.{name}.layer.window": [version.layer.window],
                f"adapters.{name}.windows": version.windows,
                "evaluate.window.extra_sizes": window.extra_sizes,
            }.items():
                sums = [version.exact_context(self.data.segment_length, size) for size in sizes]
                key += f" + sinks{more}"
                tokens[key] = max([*sums, tokens.get(key, 0)])
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
    def _check_policy_curve(self) -> Self:
        if both := self.policies.file_names() & self.policy_curve.file_names():
            raise InputError(
                f"policy_curve: {min(both).removesuffix('.csv')} (policy, window_size, "
                "policy_window) is in policies too: remove it from one"
            )
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
            ("evaluate.short.samples", evaluate.short.samples, "test.samples", data.test.samples),
            ("evaluate.documents", evaluate.documents, "test.documents", data.test.documents),
            (
                "evaluate.double_shift.documents",
                evaluate.double_shift.documents,
                "test.documents",
                data.test.documents,
            ),
        ]
        for name, version in self.versions.items():
            used = version.document_recipe.documents
            limits.append((f"{self.recipe_key(name)}.documents", used, "documents", data.documents))
        for key, value, other, limit in limits:
            if value is not None and value > limit:
                raise InputError(f"{key} must be ≤ data.{other} ({limit}), got {value}")
        return self

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        """Documents and full attention are longer than a segment, or nothing crosses one."""
        data, segment = self.data, self.data.segment_length
        if segment >= data.document_length:
            raise InputError(
                f"data.segment_length must be < data.document_length ({data.document_length}), "
                f"got {segment}"
            )
        if (context := self.evaluate.full.context) <= segment:
            raise InputError(
                f"evaluate.full.context must be > data.segment_length ({segment}), got {context}: "
                "full attention would see no more than a segment"
            )
        for name, version in self.versions.items():
            try:
                version.document_recipe.check_documents(
                    data.documents, data.document_length, segment
                )
            except InputError as error:
                raise InputError(f"{self.recipe_key(name)}.{error}") from None
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
        raise InputError(f"{file}: {_error_line(invalid)}") from None


def _error_line(invalid: ValidationError) -> str:
    """Return the first error that is no missing key, or else all missing keys.

    A key moved to the wrong block is missing too.
    """
    missing = list[str]()
    for error in invalid.errors():
        # pydantic adds the method of an adapter to the location, and "[key]" to a name's.
        parts = [str(part) for part in error["loc"]]
        if parts[:1] == ["adapters"] or parts[-1:] == ["[key]"]:
            del parts[2:3]
        if error["type"] != "missing":
            return error_line(".".join(parts), error)
        missing += missing_keys(Params, parts)
    return f"missing keys: {', '.join(missing)}"


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
            known = _check_base(params)
            text_files(params.data.corpus)
            if known:
                _check_facts(params)
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix(f'{PARAMS_FILE}: ')}") from None
    return params


def _check_base(params: Params) -> bool:
    """Raise InputError if the base's config rules out what a key asks of it.

    Returns:
        Whether the config could be read.
    """
    if (base := base_info(params.base.model, params.base.revision)) is None:
        return False
    name = params.base.model
    for contexts, longest in (
        (params.contexts(), base.context),
        (params.window_contexts(), base.window_context),
    ):
        for key, tokens in contexts.items():
            if longest is not None and tokens > longest:
                raise InputError(
                    f"{key} must be ≤ {longest}, the context of {name!r}, got {tokens}"
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
    return True


def _check_facts(params: Params) -> None:
    """Raise InputError if facts and questions, in the base's tokens, do not fit where they go."""
    # slow to import: torch and transformers
    from infini.corpus.haystacks import FactSampler, check_document_length
    from infini.evaluation.retrieval_texts import check_text_lengths
    from infini.model.base import load_tokenizer

    data, evaluate = params.data, params.evaluate
    try:
        tokenizer = load_tokenizer(params.base.model, params.base.revision)
    except InputError:
        if os.path.isdir(os.path.expanduser(params.base.model)):
            raise
        return  # the hub cannot be reached
    check_text_lengths(tokenizer, data.segment_length, evaluate.passkey, evaluate.recall)
    for name, version in params.versions.items():
        recipe = version.document_recipe
        if not recipe.question_share:
            continue
        windows: list[int | None] = [*recipe.drawn_windows] or [None]
        distance = max(recipe.exact_context(data.segment_length, window) for window in windows)
        length = recipe.tokens_read(data.document_length)
        try:
            check_document_length(length, FactSampler(tokenizer), distance)
        except InputError as error:
            raise InputError(f"{params.recipe_key(name)}.{error}") from None
