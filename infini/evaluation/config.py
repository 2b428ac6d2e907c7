"""Sections of params.yaml: the protocols, and what a memory costs."""

from typing import Annotated

from pydantic import Field, model_validator

from infini.errors import InputError
from infini.schema import Positive, Section, Share


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
