"""Section of params.yaml: the training of the embedded base."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from infini.errors import InputError
from infini.schema import Positive, Rate, Section


class Phase(Section):
    """Part of the pretraining with its own text and context."""

    # names of corpora, as in data.corpus
    corpora: Annotated[list[str], Field(min_length=1)]
    # tokens per sequence
    context: Annotated[int, Field(ge=2, le=10**6)]
    # passes over the corpora's `base` documents
    epochs: Positive


class Pretrain(Section):
    """Stage pretrain_base: the embedded base, a GPT-NeoX."""

    # size of the byte-level BPE vocabulary
    vocab_size: Annotated[int, Field(ge=257, le=10**6)]
    # hidden size, a multiple of `heads`
    width: Annotated[int, Field(ge=1, le=2**16)]
    layers: Annotated[int, Field(ge=1, le=1_000)]
    # attention heads per layer
    heads: Annotated[int, Field(ge=1, le=2**16)]
    # peak learning rate of both optimizers, Muon and AdamW
    lr: Rate
    weight_decay: Annotated[float, Field(ge=0)]
    # optimizer steps of linear warm-up
    warmup: Positive
    # tokens per optimizer step; at least one sequence
    batch_tokens: Positive
    phases: Annotated[list[Phase], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.batch_tokens < self.context:
            raise InputError(
                f"batch_tokens must be ≥ the longest context ({self.context}), "
                f"got {self.batch_tokens}"
            )
        if self.width % self.heads:
            raise InputError(f"width must be a multiple of heads ({self.heads}), got {self.width}")
        return self

    @property
    def context(self) -> int:
        """Tokens of the longest sequence that the base is trained on."""
        return max(phase.context for phase in self.phases)
