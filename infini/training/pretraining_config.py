"""Section of params.yaml: the training of the embedded base."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from infini.errors import InputError
from infini.schema import Positive, Rate, Section


class Phase(Section):
    """A part of the pretraining with its own text and context."""

    corpora: Annotated[list[str], Field(min_length=1)]
    # tokens a sequence
    context: Annotated[int, Field(ge=2, le=10**6)]
    # passes over the corpora's `base` documents
    epochs: Positive


class Pretrain(Section):
    """Stage pretrain_base: the embedded base model."""

    # size of the byte-level BPE vocabulary
    vocab_size: Annotated[int, Field(ge=257, le=10**6)]
    width: Annotated[int, Field(ge=1, le=2**16)]
    layers: Annotated[int, Field(ge=1, le=1_000)]
    heads: Annotated[int, Field(ge=1, le=2**16)]
    # peak learning rate, for Muon and AdamW alike
    lr: Rate
    weight_decay: Annotated[float, Field(ge=0)]
    # optimizer steps of linear warm-up
    warmup: Positive
    # tokens an optimizer step; one sequence at least
    batch_tokens: Positive
    phases: Annotated[list[Phase], Field(min_length=1)]

    @model_validator(mode="after")
    def _batch(self) -> Self:
        if self.batch_tokens < self.context:
            raise InputError(
                f"batch_tokens: the longest context, {self.context}, at least, "
                f"got {self.batch_tokens}"
            )
        return self

    @property
    def context(self) -> int:
        """Tokens of the longest sequence it is trained on."""
        return max(phase.context for phase in self.phases)
