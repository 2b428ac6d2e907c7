"""Sections of params.yaml: training recipes, and versions made of them."""

from dataclasses import asdict, fields
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from infini.choices import RETENTION_BLOCK, Objective, Policy, check_choice
from infini.errors import InputError, shown
from infini.model.retrofit_config import RetrofitConfig
from infini.model.segmented.config import ParallelConfig, ReplaceConfig
from infini.model.window.config import WindowConfig
from infini.schema import Different, Positive, Rate, Section, Seed, Share, unknown_key

TWO_VAL_DOCUMENTS = 15  # fewest training documents of which two are val, one in ten


class Recipe(Section):
    """Settings of every training."""

    epochs: Positive = 1
    # peak learning rate
    lr: Rate
    # learning rate of the gates β and of α
    gate_lr: Rate = 1e-2
    # samples or documents per optimizer step
    batch_size: Positive = 1
    # true: val text selects the best epoch; false: val text is trained on, the last epoch is used
    hold_out: bool = True
    # epochs without a lower val loss before training stops; null: never
    patience: Positive | None = None

    @model_validator(mode="after")
    def _check_patience(self) -> Self:
        if self.patience is not None and not self.hold_out:
            raise InputError(f"patience must be null with hold_out: false, got {self.patience}")
        return self


class DocumentRecipe(Recipe):
    """Settings of a training on long documents, one optimizer step per batch of them."""

    # number of prepared documents used, val included; null: all
    documents: Annotated[int, Field(ge=2, le=10**9)] | None = None

    # cross_entropy: the next token; distillation: the log-probabilities of the base with full
    # attention (stage record_teacher)
    objective: Objective = "cross_entropy"
    # tokens of each document that are trained on, from its start; null: all
    length: Annotated[int, Field(ge=2)] | None = None
    # share of the batches with synthetic retrieval questions, where only the answers count, by
    # cross-entropy
    question_share: Share = 0.0
    # factor of the loss in these batches, the mean over a few answers' tokens; Adam would otherwise
    # scale the steps on plain text down by its much larger gradient
    question_weight: Rate = 1.0
    # learning rates over the steps; linear: up during the first fifth, then down to a tenth
    schedule: Literal["constant", "linear"] = "constant"

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        if self.objective == "distillation" and not self.hold_out:
            raise InputError("hold_out must be true with objective: distillation, got false")
        if self.question_weight != 1 and not self.question_share:
            raise InputError(
                f"question_weight must be 1.0 with question_share: 0.0, got {self.question_weight}"
            )
        return self

    @property
    def drawn_windows(self) -> list[int]:
        """Windows that each batch draws one of; empty: the layer's own."""
        return []

    def exact_context(self, segment_length: int, window: int | None) -> int:
        """Return how many tokens a query attends to exactly; `window`: the drawn one, if any."""
        return segment_length

    def chunk(self, segment_length: int) -> int | None:
        """Return over how many tokens gradients flow back; None: the whole document."""
        return None

    @property
    def steps_by_segment(self) -> bool:
        """Whether an optimizer step follows every chunk instead of the document."""
        return False

    def tokens_read(self, length: int) -> int:
        """Return how many tokens of a document of `length` tokens are trained on."""
        return min(self.length or length, length)

    def check_documents(self, documents: int, length: int, segment_length: int) -> None:
        """Raise InputError if so many documents of `length` tokens are too little to train on."""
        if (read := self.tokens_read(length)) <= segment_length:
            raise InputError(
                f"length must be > data.segment_length ({segment_length}), got {read}: "
                "nothing is read from the memory within the first segment"
            )


class LongRecipe(DocumentRecipe):
    """Settings of a training on long documents read by segments."""

    # segment: an optimizer step after every segment; document: after the document
    update: Literal["segment", "document"] = "document"
    # segments that gradients flow back through the memory; null: the whole document
    bptt_segments: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _check_update(self) -> Self:
        if self.update == "segment" and self.bptt_segments != 0:
            raise InputError(
                f"bptt_segments must be 0 with update: segment, got {self.bptt_segments}"
            )
        if self.update == "segment" and self.question_share:
            raise InputError(
                f"question_share must be 0.0 with update: segment, got {self.question_share}: "
                "a segment may have no answer"
            )
        return self

    def chunk(self, segment_length: int) -> int | None:
        """Return the tokens between two detachments of the memory."""
        return None if self.bptt_segments is None else (self.bptt_segments + 1) * segment_length

    @property
    def steps_by_segment(self) -> bool:
        return self.update == "segment"


# Options of `retrofit` that are no keys of a `layer` block: data.segment_length and the adapter's
# own alpha have these; every version is trained and scored by segments.
OUTSIDE_LAYER = ("segment_length", "alpha", "segmented")


def layer_options(config: RetrofitConfig) -> dict[str, Any]:
    """Return the options that a `layer` block holds, defaults included."""
    return {k: v for k, v in asdict(config).items() if k not in OUTSIDE_LAYER}


def retrofit_options(config: ReplaceConfig | ParallelConfig, segment_length: int) -> dict[str, Any]:
    """Return the arguments of `infini.retrofit` for the layers of a `layer` block."""
    return {"method": config.method, "segment_length": segment_length, **layer_options(config)}


def _layer(kind: type[RetrofitConfig]) -> BeforeValidator:
    """Return the validator that makes a method's config of a `layer` block."""

    def build(block: Any) -> RetrofitConfig:
        if not isinstance(block, dict):
            raise InputError(f"must be a block of options, got {shown(block)}")
        known = [field.name for field in fields(kind) if field.name not in OUTSIDE_LAYER]
        for key in block:
            if key not in known:
                raise InputError(unknown_key(key, known))
        config = kind(**block)
        if config.layers == [] or (config.layers is None and kind is not WindowConfig):
            raise InputError(f"layers must name at least one layer, got {config.layers}")
        return config

    return BeforeValidator(build)


AsOptions = PlainSerializer(layer_options)
ReplacedLayer = Annotated[ReplaceConfig, _layer(ReplaceConfig), AsOptions]
ParallelLayer = Annotated[ParallelConfig, _layer(ParallelConfig), AsOptions]
WindowLayerConfig = Annotated[WindowConfig, _layer(WindowConfig), AsOptions]


class Replacement(Section):
    """Version that replaces layers: distilled from them, then finetuned on long documents."""

    layer: ReplacedLayer
    # null: no distillation, the layers start with their initial weights
    distill: Recipe | None
    finetune: LongRecipe

    @model_validator(mode="after")
    def _check_layer(self) -> Self:
        layers = self.layer.layers or []
        if self.distill is not None and len(layers) != 1:
            raise InputError(f"layer.layers must be one layer with distill, got {layers}")
        if self.layer.init == "teacher" and self.layer.position is not None:
            raise InputError(
                f"layer.position must be null with init: teacher, got {self.layer.position!r}"
            )
        return self

    @property
    def steps(self) -> tuple[str, ...]:
        """Trainings of this version, in order."""
        return ("finetune",) if self.distill is None else ("distill", "finetune")

    @property
    def document_recipe(self) -> DocumentRecipe:
        """Settings of the training on long documents."""
        return self.finetune

    def retrofit_options(self, segment_length: int) -> dict[str, Any]:
        """Return the arguments of `infini.retrofit` for the untrained version."""
        return retrofit_options(self.layer, segment_length)

    def blocks(self) -> dict[str, Any]:
        """Return the settings by step: layer, distill, finetune."""
        return self.model_dump()


class Adapter(DocumentRecipe):
    """Version that keeps every layer of the base: what methods parallel and window share."""

    # keys that are the version's own, not its training's
    version_keys: ClassVar[tuple[str, ...]] = ("method", "layer", "control", "seeds")

    # true: also train the shuffled-memory control, whose memory is another document's
    control: bool = True
    # seeds beside the general ones that this version and its control are trained with
    seeds: list[Seed] = Field(default_factory=list)

    @property
    def steps(self) -> tuple[str, ...]:
        """Trainings of this version, in order."""
        return ("finetune",)

    @property
    def document_recipe(self) -> DocumentRecipe:
        """Settings of the training on long documents."""
        return self

    def retrofit_options(self, segment_length: int) -> dict[str, Any]:
        """Return the arguments of `infini.retrofit` for the untrained version."""
        raise NotImplementedError

    def check_control(self, documents: int, length: int) -> None:
        """Raise InputError if so many documents of `length` tokens do not suffice for a control."""
        documents = self.documents or documents
        fewest = 3 if self.hold_out else 2  # one of them is val
        if self.control and documents < fewest:
            raise InputError(
                f"documents must be ≥ {fewest} with control: true, got {documents}: the control "
                "reads with the memory of another document"
            )
        shortened = self.tokens_read(length) < length
        if self.control and self.hold_out and shortened and documents < TWO_VAL_DOCUMENTS:
            raise InputError(
                f"length must be null with control: true and {documents} documents (below "
                f"{TWO_VAL_DOCUMENTS}, one is val), got {self.length}: the val document is read "
                "whole, with the memory of a train document of its length"
            )

    def blocks(self) -> dict[str, Any]:
        """Return the settings by step: the version's own, and finetune."""
        recipe = self.model_dump()
        own = {name: recipe.pop(name) for name in self.version_keys}
        return own | {"finetune": recipe}


class Alpha(Section):
    """α, the weight of a memory beside its layer."""

    # initial value; 0.0: the version starts as the base
    init: Annotated[float, Field(ge=-100, le=100)] = 0.0
    # false: α stays as it is
    learn: bool = True

    @model_validator(mode="after")
    def _check_init(self) -> Self:
        if not self.learn and not self.init:
            raise InputError("init must not be 0 with learn: false: the memory would add nothing")
        return self


class ParallelAdapter(Adapter, LongRecipe):
    """Version with method: parallel; documents are read by segments."""

    version_keys: ClassVar[tuple[str, ...]] = (*Adapter.version_keys, "alpha")

    method: Literal["parallel"]
    layer: ParallelLayer
    alpha: Alpha = Field(default_factory=Alpha)
    lr: Rate = 2e-3

    def check_documents(self, documents: int, length: int, segment_length: int) -> None:
        super().check_documents(documents, length, segment_length)
        self.check_control(documents, length)

    def retrofit_options(self, segment_length: int) -> dict[str, Any]:
        return retrofit_options(self.layer, segment_length) | {"alpha": self.alpha.init}


class WindowAdapter(Adapter):
    """Version with method: window, and a memory of what has left the window."""

    method: Literal["window"]
    layer: WindowLayerConfig
    lr: Rate = 3e-3
    # windows that each batch draws one of, instead of the layer's; in tokens
    windows: Annotated[list[Positive], Different] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_layer(self) -> Self:
        check_choice("layer.policy", self.layer.policy, Policy)
        if self.layer.update == "none" and not self.layer.retained:
            raise InputError("layer.retained must be ≥ 1 with update: none, got 0")
        return self

    @property
    def drawn_windows(self) -> list[int]:
        return self.windows

    def exact_context(self, segment_length: int, window: int | None) -> int:
        exact = (window or self.layer.window) + self.layer.sinks
        return exact + (RETENTION_BLOCK - 1 if self.layer.retained else 0)

    def check_documents(self, documents: int, length: int, segment_length: int) -> None:
        read, windows = self.tokens_read(length), self.windows or [self.layer.window]
        exact = max(self.exact_context(segment_length, window) for window in windows)
        if read <= exact:
            key = "layer.window" if self.length is None else "length"
            raise InputError(
                f"{key}: documents of {read} tokens leave nothing to the memory, {exact} are "
                "attended to exactly (window, sinks, a block of retained pairs)"
            )
        self.check_control(documents, length)

    def retrofit_options(self, segment_length: int) -> dict[str, Any]:
        return {"method": self.method, **layer_options(self.layer)}


AnyAdapter = Annotated[ParallelAdapter | WindowAdapter, Field(discriminator="method")]
VersionConfig = Replacement | Adapter
