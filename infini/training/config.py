"""Sections of params.yaml: recipes of trainings, versions made of them, audits of a version."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from infini.errors import InputError
from infini.model.config import Placement
from infini.schema import Name, Positive, Rate, Section

# What the research log did wrong, as far as an audit can put it into a training of ours.
Mistake = Literal["none", "labels_shifted_twice", "memory_carried", "padding_counted"]


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


class LongRecipe(Recipe):
    """Training on long documents."""

    # how many of the prepared documents are used, val included; null: all
    documents: Positive | None
    # an optimizer step after every segment, or after the document
    update: Literal["segment", "document"]
    # segments that gradient flows back through the memory; null: the whole document
    bptt_segments: Annotated[int, Field(ge=0)] | None

    @model_validator(mode="after")
    def _update(self) -> Self:
        if self.update == "segment" and self.bptt_segments != 0:
            raise InputError("bptt_segments must be 0 with update: segment")
        return self


class ReplacedLayer(Placement):
    """The layer that is replaced, and the attention of the one in its place."""

    @model_validator(mode="after")
    def _one_layer(self) -> Self:
        if len(self.layers) != 1:
            raise InputError("layers: a replacement distils exactly one layer")
        return self

    @property
    def index(self) -> int:
        """Which decoder layer, from 0."""
        return self.layers[0]

    def retrofit_options(self) -> dict[str, Any]:
        """Arguments of `infini.retrofit` that put an untrained layer into a base."""
        return {"method": "replace", "init": "random", **self.model_dump()}


class Replacement(Section):
    """A version that replaces a layer: distilled from it, then finetuned on long documents."""

    steps: ClassVar[tuple[str, ...]] = ("distill", "finetune")

    layer: ReplacedLayer
    distill: Recipe
    finetune: LongRecipe

    @property
    def long(self) -> LongRecipe:
        """How it is trained on long documents."""
        return self.finetune

    def retrofit_options(self) -> dict[str, Any]:
        """Arguments of `infini.retrofit` that put its untrained memory into a base."""
        return self.layer.retrofit_options()

    def blocks(self) -> dict[str, Any]:
        """Its settings by step: layer, distill, finetune."""
        return self.model_dump()

    def changed(self, audit: "Audit") -> Self:
        """The same with what an audit changes; ValidationError for what cannot be."""
        content = self.model_dump()
        content["distill"] |= audit.distill
        content["finetune"] |= audit.finetune
        return self.model_validate(content)


class Adapter(LongRecipe):
    """A version that keeps every layer and adds α times the memory beside some."""

    steps: ClassVar[tuple[str, ...]] = ("finetune",)

    layer: Placement
    # where α starts; 0: as the base
    alpha: float

    @property
    def long(self) -> LongRecipe:
        """How it is trained on long documents."""
        return self

    def retrofit_options(self) -> dict[str, Any]:
        """Arguments of `infini.retrofit` that put its untrained memory into a base."""
        return {"method": "parallel", "alpha": self.alpha, **self.layer.model_dump()}

    def blocks(self) -> dict[str, Any]:
        """Its settings by step: layer, alpha, finetune."""
        recipe = self.model_dump()
        own = {name: recipe.pop(name) for name in ("layer", "alpha")}
        return own | {"finetune": recipe}

    def changed(self, audit: "Audit") -> Self:
        """The same with what an audit changes; ValidationError for what cannot be."""
        return self.model_validate(self.model_dump() | audit.finetune)


Version = Replacement | Adapter


class Audit(Section):
    """Stage audit: a version trained once more with a suspect of the research log in it."""

    # the version
    of: Name
    # what the report says that it asks
    question: str
    # a mistake of the log that is put into the training, else: none
    mistake: Mistake = "none"
    # what differs from the version's own recipe; an empty `distill` keeps its distilled layer
    distill: dict[str, Any] = Field(default_factory=dict)
    finetune: dict[str, Any] = Field(default_factory=dict)
