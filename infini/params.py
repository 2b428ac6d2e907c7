"""The schema of params.yaml: every key, its unit, its range.

`read` hands a stage just the values that it names, and checks the whole file first:
a wrong value or an unknown key is one line that names the key, before any work.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from infini.errors import InputError

FILE = Path("params.yaml")

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Method = Literal["replace", "parallel"]


class Section(BaseModel):
    """A block of params.yaml: no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Base(Section):
    """The pretrained model that gets the memory."""

    # a folder written by save_pretrained, or a hub name
    model: str
    # commit, branch or tag on the hub; null: main
    revision: str | None = None


class Phase(Section):
    """A part of the pretraining with its own text and context."""

    corpora: Annotated[list[str], Field(min_length=1)]
    # tokens a sequence
    context: Positive
    # passes over the corpora's `base` documents
    epochs: Positive


class Pretrain(Section):
    """Stage pretrain_base: the embedded base model."""

    # size of the byte-level BPE vocabulary
    vocab_size: Annotated[int, Field(ge=257)]
    width: Positive
    layers: Positive
    heads: Positive
    # peak learning rate, for Muon and AdamW alike
    lr: Rate
    weight_decay: Annotated[float, Field(ge=0)]
    # optimizer steps of linear warm-up
    warmup: Positive
    # tokens an optimizer step
    batch_tokens: Positive
    phases: Annotated[list[Phase], Field(min_length=1)]

    @property
    def context(self) -> int:
        """Tokens of the longest sequence it is trained on."""
        return max(phase.context for phase in self.phases)


class Shares(Section):
    """How documents are dealt out, by a hash of their id."""

    # trains the embedded base, and nothing else
    base: Share
    train: Share
    val: Share
    test: Share

    @model_validator(mode="after")
    def _sum(self) -> "Shares":
        total = self.base + self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise InputError(f"must sum to 1, got {total:g}")
        return self


class TestSize(Section):
    """How much held-out text is prepared."""

    samples: Positive
    documents: Positive


class Data(Section):
    """Stage prepare_data: text into short samples and long documents."""

    # "sotu" (embedded), a folder of .txt or .jsonl files, or a hub dataset's name
    corpus: str
    shares: Shares
    # short samples for training, nine parts train and one part val
    samples: Annotated[int, Field(ge=2)]
    # long documents for training, nine parts train and one part val
    documents: Annotated[int, Field(ge=2)]
    # tokens a document
    document_length: Annotated[int, Field(ge=2)]
    # tokens a segment, and a short sample
    segment_length: Annotated[int, Field(ge=4)]
    test: TestSize


class Placement(Section):
    """Where the memory goes, and what its attention is like."""

    # decoder layers, from 0
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    # rule of the memory's write
    update: Literal["linear", "delta"] = "delta"
    # attention within a segment
    local: Literal["softmax", "linear"] = "softmax"
    # positions within a segment
    position: Literal["none", "alibi", "rope"] = "none"


class Recipe(Section):
    """What every training has."""

    epochs: Positive
    lr: Rate
    # learning rate of the gates β and of α
    gate_lr: Rate
    # samples or documents an optimizer step
    batch_size: Positive
    # val text decides the best epoch; false: val text is trained on too, the last epoch is kept
    hold_out: bool
    # epochs without a better val loss before stopping; null: never
    patience: Positive | None

    @model_validator(mode="after")
    def _patience(self) -> "Recipe":
        if self.patience is not None and not self.hold_out:
            raise InputError("patience needs hold_out: true, there is no val loss otherwise")
        return self


class Distillation(Recipe):
    """Training on short samples, to do what the replaced layer did."""

    # padding counts in the loss and is written to memory (an audit: a mistake)
    padding: bool = False


class LongRecipe(Recipe):
    """Training on long documents."""

    # how many of the prepared documents are used, val included; null: all
    documents: Positive | None
    # an optimizer step after every segment, or after the document
    update: Literal["segment", "document"]
    # segments that gradient flows back through the memory; null: the whole document
    bptt_segments: Annotated[int, Field(ge=0)] | None
    # 1: the next token is learnt; 2: the token after next (an audit: labels shifted twice)
    label_shift: Literal[1, 2] = 1
    # a document starts with the memory of the one before it (an audit: not reset)
    carry_memory: bool = False

    @model_validator(mode="after")
    def _update(self) -> "LongRecipe":
        if self.update == "segment" and self.bptt_segments != 0:
            raise InputError("bptt_segments must be 0 with update: segment")
        return self


class Replacement(Section):
    """A version that replaces a layer: distilled from it, then finetuned on long documents."""

    layer: Placement
    distill: Distillation
    finetune: LongRecipe

    @model_validator(mode="after")
    def _one_layer(self) -> "Replacement":
        if len(self.layer.layers) != 1:
            raise InputError("layer.layers: a replacement distils exactly one layer")
        return self


class Adapter(LongRecipe):
    """A version that keeps every layer and adds α times the memory beside some."""

    layer: Placement
    # where α starts; 0: as the base
    alpha: float


class ShortProtocol(Section):
    """Perplexity on short samples, each alone."""

    # test samples scored
    samples: Positive


class LongProtocol(Section):
    """Perplexity on long documents."""

    # test documents scored
    documents: Positive


class SlidingProtocol(LongProtocol):
    """Full attention over a window, the base's ceiling."""

    # tokens a window; at most the base's own context
    context: Positive
    # tokens a window moves on; at most the context
    stride: Positive

    @model_validator(mode="after")
    def _stride(self) -> "SlidingProtocol":
        if self.stride > self.context:
            raise InputError(f"stride: at most the context, {self.context}, got {self.stride}")
        return self


class PasskeyProtocol(Section):
    """Passkey retrieval: a number hidden in test text, asked for at its end."""

    # segments a text
    lengths: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1)]
    # where the number is: 0 the start, 1 right before the question
    depths: Annotated[list[Share], Field(min_length=1)]
    # texts for each length and depth
    samples: Positive


class Evaluate(Section):
    """Stage evaluate_ppl: the protocols."""

    short: ShortProtocol
    segmented: LongProtocol
    memory_off: LongProtocol
    double_shift: LongProtocol
    sliding: SlidingProtocol
    passkey: PasskeyProtocol


class Cost(Section):
    """Stage measure_cost: what a memory costs against a full cache of keys and values."""

    # tokens read
    lengths: Annotated[list[Positive], Field(min_length=1)]
    # runs of each, the fastest counts
    repeats: Positive


class Audit(Section):
    """Stage audit: a version trained once more with a suspect of the seed log in it."""

    # the version
    of: Version
    # what the report says that it asks
    question: str
    # what differs from the version's own recipe; distill: {} keeps its distilled layer
    distill: dict[str, Any] = {}
    finetune: dict[str, Any] = {}


class Params(Section):
    """The whole of params.yaml."""

    seed: Seed
    # further seeds that every version is trained with
    seeds: list[Seed]
    base: Base
    pretrain: Pretrain
    data: Data
    replacements: dict[Version, Replacement]
    adapters: dict[Version, Adapter]
    evaluate: Evaluate
    cost: Cost
    audits: dict[Version, Audit]

    @model_validator(mode="after")
    def _audits(self) -> "Params":
        for name, audit in self.audits.items():
            try:
                audited(audit, self.versions)
            except InputError as error:
                raise InputError(f"audits.{name}.{error}") from None
        return self

    @property
    def versions(self) -> dict[str, Replacement | Adapter]:
        """All of them, by name."""
        return {**self.replacements, **self.adapters}

    @model_validator(mode="after")
    def _names(self) -> "Params":
        if both := self.replacements.keys() & self.adapters.keys():
            raise InputError(f"{both.pop()!r} names a replacement and an adapter: rename one")
        if "base" in self.replacements.keys() | self.adapters.keys():
            raise InputError("'base' is the untouched base's name: rename the version")
        return self


def audited(audit: Audit, versions: Mapping[str, Replacement | Adapter]) -> Replacement | Adapter:
    """An audit's recipe: its version's, with what it changes. InputError for what cannot be."""
    if (recipe := versions.get(audit.of)) is None:
        raise InputError(f"of: no version {audit.of!r}")
    content = recipe.model_dump()
    if isinstance(recipe, Adapter):
        if audit.distill:
            raise InputError(f"distill: {audit.of!r} is an adapter, nothing is distilled")
        content |= audit.finetune
    else:
        content |= {key: content[key] | getattr(audit, key) for key in ("distill", "finetune")}
    try:
        return type(recipe).model_validate(content)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        place = ["finetune"] if isinstance(recipe, Adapter) else []
        key = ".".join(map(str, [*place, *first["loc"]]))
        raise InputError(f"{key}: {_message(first)}") from None


def load(file: Path | None = None) -> Params:
    """The whole file, checked. InputError: one line that names the first wrong key."""
    file = file or FILE
    try:
        # YAML 1.2 as DVC writes it: 1e-05 is a number, which PyYAML takes for text.
        content = YAML(typ="safe", pure=True).load(file)
    except FileNotFoundError:
        raise InputError(f"{file}: not found; run from the repository's root") from None
    except YAMLError as error:
        raise InputError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    try:
        return Params.model_validate(content)
    except ValidationError as invalid:
        # A misspelt key is missing too: its name is the more helpful of the two.
        first = min(invalid.errors(), key=lambda error: error["type"] != "extra_forbidden")
        key = ".".join(map(str, first["loc"])) or "versions"
        raise InputError(f"{file}: {key}: {_message(first)}") from None


def _message(error: Any) -> str:
    match error["type"]:
        case "extra_forbidden":
            return "unknown key; remove it or correct its name"
        case "missing":
            return "is missing; add it"
        case "value_error":
            return str(error["ctx"]["error"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def read(*keys: str) -> list[Any]:
    """The values of the dotted `keys`, the whole file checked first.

    Just these are what a stage depends on: dvc.yaml lists the same keys under `params`.
    """
    params = load()
    values = []
    for key in keys:
        value: Any = params
        for part in key.split("."):
            try:
                value = value[part] if isinstance(value, dict) else getattr(value, part)
            except (KeyError, AttributeError):
                raise InputError(f"{FILE}: {key}: no such key") from None
        values.append(value)
    return values


def every_seed(seed: int, seeds: list[int]) -> list[int]:
    """What every version is trained with: `seed`, then the further ones."""
    return list(dict.fromkeys([seed, *seeds]))


if __name__ == "__main__":
    try:
        load()
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
