"""Sections of params.yaml: the protocols, and what a memory costs."""

from typing import Annotated

from pydantic import Field, model_validator

from infini.errors import InputError
from infini.schema import Different, Positive, Section, Share

Segments = Annotated[int, Field(ge=2, le=10**5)]


class ShortProtocol(Section):
    """Perplexity on short samples, each alone."""

    # test samples scored
    samples: Positive


class DoubleShiftProtocol(Section):
    """The research log's loop, which scores the token after next."""

    # test documents scored, of those that the other protocols score
    documents: Positive


class FullProtocol(Section):
    """Full attention, the untouched base's ceiling."""

    # tokens a window; at most the base's own context
    context: Positive
    # tokens a window moves on; at most the context
    stride: Positive

    @model_validator(mode="after")
    def _stride(self) -> "FullProtocol":
        if self.stride > self.context:
            raise InputError(f"stride: at most the context, {self.context}, got {self.stride}")
        return self


class WindowProtocol(Section):
    """The untouched base with a text's first tokens and its last, exactly, and no memory."""

    # tokens of the window, the own one included; with the sinks at most the base's context
    sizes: Annotated[list[Positive], Field(min_length=1)]
    # first tokens of a text that are always seen
    sinks: Annotated[int, Field(ge=0)]
    # windows that versions of method: window are read with besides their own
    extra_sizes: Annotated[list[Positive], Different] = Field(default_factory=list)

    @model_validator(mode="after")
    def _sizes(self) -> "WindowProtocol":
        if self.sizes != sorted(set(self.sizes)):
            raise InputError(f"sizes: in rising order, none twice, got {self.sizes}")
        return self


class PasskeyProtocol(Section):
    """Passkey retrieval: a number hidden in test text, asked for at its end."""

    # segments a text
    lengths: Annotated[list[Segments], Field(min_length=1), Different]
    # where the number is: 0 the start, 1 right before the question
    depths: Annotated[list[Share], Field(min_length=1), Different]
    # texts for each length and depth
    samples: Positive


class RecallProtocol(Section):
    """Recall: the codes of several words hidden in test text, some asked for at its end."""

    # codes in a text; there are 64 words
    pairs: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1), Different]
    # codes asked for in each text; their answers fit into a segment
    questions: Positive
    # segments a text
    segments: Segments
    # texts for each number of pairs
    samples: Positive

    @model_validator(mode="after")
    def _questions(self) -> "RecallProtocol":
        if self.questions > min(self.pairs):
            raise InputError(
                f"questions: at most the fewest pairs, {min(self.pairs)}, got {self.questions}"
            )
        return self


class Evaluate(Section):
    """Stage evaluate_ppl: the protocols."""

    short: ShortProtocol
    # test documents scored, the same by every protocol: differences are paired; two at least,
    # since one is read with the memory of another
    documents: Annotated[int, Field(ge=2)]
    double_shift: DoubleShiftProtocol
    full: FullProtocol
    window: WindowProtocol
    passkey: PasskeyProtocol
    # null: not asked
    recall: RecallProtocol | None = None

    @model_validator(mode="after")
    def _documents(self) -> "Evaluate":
        if self.double_shift.documents > self.documents:
            raise InputError(
                f"double_shift.documents: at most evaluate.documents, {self.documents}, "
                f"got {self.double_shift.documents}"
            )
        return self


class Cost(Section):
    """Stage measure_cost: what a memory costs against a full cache of keys and values."""

    # tokens read
    lengths: Annotated[list[Annotated[int, Field(ge=1, le=10**7)]], Field(min_length=1), Different]
    # runs of each, the fastest counts
    repeats: Positive
