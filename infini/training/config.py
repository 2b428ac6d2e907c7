"""Sections of params.yaml: recipes of trainings, versions made of them."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from infini.choices import RETENTION_BLOCK, Init, Objective, Position
from infini.errors import InputError
from infini.model.config import Placement, WindowPlacement
from infini.schema import Different, Positive, Rate, Section, Seed, Share


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
    def _patience(self) -> Self:
        if self.patience is not None and not self.hold_out:
            raise InputError("patience needs hold_out: true, there is no val loss otherwise")
        return self


class DocumentRecipe(Recipe):
    """Training on long documents, each read whole, an optimizer step a batch of them."""

    # how many of the prepared documents are used, val included; null: all
    documents: Annotated[int, Field(ge=2, le=10**9)] | None

    # the next token, or what the base with full attention says of it (stage record_teacher)
    objective: Objective = "cross_entropy"
    # tokens of each document that are trained on, from its start; null: all
    length: Annotated[int, Field(ge=2)] | None = None
    # of the batches, how many hold facts and further on a question about each: there the answers
    # alone are learnt, by cross-entropy
    question_share: Share = 0.0
    # of the learning rates; linear: up during the first fifth of all steps, then down to a tenth
    schedule: Literal["constant", "linear"] = "constant"

    @model_validator(mode="after")
    def _teacher(self) -> Self:
        if self.objective == "distillation" and not self.hold_out:
            raise InputError("objective: distillation needs hold_out: true, val has no teacher")
        return self

    @property
    def drawn_windows(self) -> list[int]:
        """Of which every batch draws its window; none: the layer's own."""
        return []

    def exact_context(self, segment_length: int, window: int | None) -> int:
        """How far back a token sees without a memory, in tokens; window: the one drawn."""
        return segment_length

    def chunk(self, segment_length: int) -> int | None:
        """Tokens that gradient flows back through; None: the whole document."""
        return None

    @property
    def steps_by_segment(self) -> bool:
        """Whether an optimizer step follows every chunk, rather than the document."""
        return False


class LongRecipe(DocumentRecipe):
    """Training on long documents read by segments."""

    # an optimizer step after every segment, or after the document
    update: Literal["segment", "document"]
    # segments that gradient flows back through the memory; null: the whole document
    bptt_segments: Annotated[int, Field(ge=0)] | None

    @model_validator(mode="after")
    def _update(self) -> Self:
        if self.update == "segment" and self.bptt_segments != 0:
            raise InputError("bptt_segments must be 0 with update: segment")
        if self.update == "segment" and self.question_share:
            raise InputError("question_share needs update: document, a segment may have no answer")
        return self

    def chunk(self, segment_length: int) -> int | None:
        """Tokens between two detachments of the memory."""
        return None if self.bptt_segments is None else (self.bptt_segments + 1) * segment_length

    @property
    def steps_by_segment(self) -> bool:
        return self.update == "segment"


class ReplacedLayer(Placement):
    """The layers that are replaced, and the attention of those in their place."""

    # their weights at first: the base's own, or fresh ones
    init: Init = "random"
    # positions within a segment; null: the base's own with init: teacher, else none
    position: Position | None = None  # type: ignore[assignment]

    @model_validator(mode="after")
    def _taught(self) -> Self:
        if self.init == "teacher" and (self.local != "softmax" or self.position is not None):
            raise InputError("init: teacher has the base's own local: softmax, and position: null")
        return self

    def retrofit_options(self, segment_length: int) -> dict[str, Any]:
        """Arguments of `infini.retrofit` that put untrained layers into a base."""
        return {"method": "replace", "segment_length": segment_length, **self.model_dump()}


class Replacement(Section):
    """A version that replaces layers: distilled from them, then finetuned on long documents."""

    layer: ReplacedLayer
    # null: the layers start as they are, as those of init: teacher may
    distill: Recipe | None
    finetune: LongRecipe

    @model_validator(mode="after")
    def _distilled(self) -> Self:
        if self.distill is not None and len(self.layer.layers) != 1:
            raise InputError("layer.layers: exactly one layer is distilled")
        return self

    @property
    def steps(self) -> tuple[str, ...]:
        """The trainings that it takes."""
        return ("finetune",) if self.distill is None else ("distill", "finetune")

    @property
    def long(self) -> DocumentRecipe:
        """How it is trained on long documents."""
        return self.finetune

    def retrofit_options(self, segment_length: int) -> dict[str, Any]:
        """Arguments of `infini.retrofit` that put its untrained memory into a base."""
        return self.layer.retrofit_options(segment_length)

    def blocks(self) -> dict[str, Any]:
        """Its settings by step: layer, distill, finetune."""
        return self.model_dump()


class Adapter(DocumentRecipe):
    """A version that keeps every layer: what both methods have."""

    # settings, not the recipe's
    own: ClassVar[tuple[str, ...]] = ("method", "layer", "control", "seeds")

    # a twin trained alike, its memory always that of another document
    control: bool
    # further seeds that this version, and its control, are trained with
    seeds: list[Seed] = Field(default_factory=list)

    @property
    def steps(self) -> tuple[str, ...]:
        """The trainings that it takes."""
        return ("finetune",)

    @property
    def long(self) -> DocumentRecipe:
        """How it is trained on long documents."""
        return self

    def retrofit_options(self, segment_length: int) -> dict[str, Any]:
        """Arguments of `infini.retrofit` that put its untrained memory into a base."""
        raise NotImplementedError

    def missing(self, documents: int, length: int, segment_length: int) -> str | None:
        """What so many documents of so many tokens lack for it, behind the key; None: nothing."""
        documents = self.documents or documents
        fewest = 3 if self.hold_out else 2  # one of them is for val
        if not self.control or documents >= fewest:
            return None
        return (
            f"documents: {fewest} or more are needed with control: true, whose memory is another "
            f"document's, got {documents}"
        )

    def blocks(self) -> dict[str, Any]:
        """Its settings by step: its own, and finetune."""
        recipe = self.model_dump()
        own = {name: recipe.pop(name) for name in self.own}
        return own | {"finetune": recipe}


class ParallelAdapter(Adapter, LongRecipe):
    """α times a memory beside some layers, documents read by segments."""

    own: ClassVar[tuple[str, ...]] = (*Adapter.own, "alpha")

    method: Literal["parallel"]
    layer: Placement
    # where α starts; 0: as the base
    alpha: Annotated[float, Field(ge=-100, le=100)]

    def retrofit_options(self, segment_length: int) -> dict[str, Any]:
        own = {"method": self.method, "segment_length": segment_length, "alpha": self.alpha}
        return own | self.layer.model_dump()


class WindowAdapter(Adapter):
    """A window in every layer, beside it a memory of what has left it."""

    method: Literal["window"]
    layer: WindowPlacement
    # of which every batch draws its window, instead of the layer's
    windows: Annotated[list[Positive], Different] = Field(default_factory=list)

    @property
    def drawn_windows(self) -> list[int]:
        return self.windows

    def exact_context(self, segment_length: int, window: int | None) -> int:
        seen = (window or self.layer.window) + self.layer.sinks
        return seen + (RETENTION_BLOCK - 1 if self.layer.retained else 0)

    def missing(self, documents: int, length: int, segment_length: int) -> str | None:
        read = min(self.length or length, length)
        windows = self.windows or [self.layer.window]
        seen = max(self.exact_context(segment_length, window) for window in windows)
        if read > seen:
            return super().missing(documents, length, segment_length)
        return (
            f"{'layer.window' if self.length is None else 'length'}: documents of {read} tokens "
            f"leave nothing to a memory behind the {seen} that are seen exactly (window, sinks, a "
            "block of kept pairs)"
        )

    def retrofit_options(self, segment_length: int) -> dict[str, Any]:
        return {"method": self.method, **self.layer.model_dump()}


AnyAdapter = Annotated[ParallelAdapter | WindowAdapter, Field(discriminator="method")]
VersionConfig = Replacement | Adapter
