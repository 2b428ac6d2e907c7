"""Sections of params.yaml: the evaluation's protocols, and the measurement of costs."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infini.choices import Policy
from infini.errors import InputError
from infini.schema import Different, Positive, Section, Share

# Ways to read that are no policies: the plain window, and what knows the attention to come
PLAIN_WINDOW, ORACLE = "window", "oracle"
Reading = Policy | Literal["window", "oracle"]
Segments = Annotated[int, Field(ge=2, le=10**5)]


class ShortProtocol(Section):
    """Perplexity on short samples, each read alone."""

    # test samples scored; null: all
    samples: Positive | None = None


class DoubleShiftProtocol(Section):
    """Loss on the token after next, as the research log's loop computed it."""

    # test documents scored, the first of evaluate.documents; null: all
    documents: Positive | None = None


class FullProtocol(Section):
    """Full attention of the untouched base, in overlapping windows of its context."""

    # tokens per window; at most the base's own context
    context: Positive
    # tokens between the starts of two windows; at most the context, which is its default
    stride: Positive = Field(default_factory=lambda valid: valid.get("context", 1))

    @model_validator(mode="after")
    def _check_stride(self) -> Self:
        if self.stride > self.context:
            raise InputError(f"stride must be ≤ context ({self.context}), got {self.stride}")
        return self


class WindowProtocol(Section):
    """Sliding window with sinks of the untouched base: the baseline of every memory."""

    # tokens per window, in rising order; with the sinks at most the base's context
    sizes: Annotated[list[Positive], Field(min_length=1)] = Field(default=[16, 64])
    # first tokens of a text that stay visible
    sinks: Annotated[int, Field(ge=0)] = 4
    # windows that versions with method: window are scored with besides their own
    extra_sizes: Annotated[list[Positive], Different] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.sizes != sorted(set(self.sizes)):
            raise InputError(f"sizes must rise, got {self.sizes}")
        return self


class PasskeyProtocol(Section):
    """Passkey retrieval: a number hidden in test text and asked for at its end."""

    # segments per text
    lengths: Annotated[list[Segments], Field(min_length=1), Different] = Field(default=[8, 32])
    # relative position of the number; 0: the start, 1: right before the question
    depths: Annotated[list[Share], Field(min_length=1), Different] = Field(default=[0.0, 0.5, 1.0])
    # texts per length and depth
    samples: Positive = 2


class RecallProtocol(Section):
    """Recall: codes of several words hidden in test text, some of them asked for at its end."""

    # codes per text; there are 64 words
    pairs: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1), Different]
    # codes asked for per text; their answers fit into a segment
    questions: Positive
    # segments per text
    segments: Segments
    # texts per number of pairs
    samples: Positive

    @model_validator(mode="after")
    def _check_questions(self) -> Self:
        if self.questions > min(self.pairs):
            raise InputError(
                f"questions must be ≤ the least of pairs ({min(self.pairs)}), got {self.questions}"
            )
        return self


class Budget(Section):
    """State bytes that retention policies are compared at."""

    # size of the plain window with sinks that has these state bytes, in tokens
    window_size: Positive
    # window of the policies, in tokens; what is left of the budget goes to retained pairs
    policy_window: Positive

    def file_name(self, policy: str) -> str:
        """Return the name of the file with a policy's figures at this budget."""
        return f"{policy}-{self.window_size}-{self.policy_window}.csv"


class PoliciesProtocol(Section):
    """Retention policies of the untouched base, nothing trained.

    `policies` (stage evaluate_policies) is for a table of many policies, `policy_curve` (stage
    evaluate_policies_curve) for a few at further sizes. The best at a size is the baseline of
    versions of that size, in either section.
    """

    # registered policies; window: the plain window; oracle: the pairs that the text's next queries
    # attend to (a ceiling)
    names: Annotated[list[Reading], Different]
    # every policy is scored at every budget
    budgets: Annotated[list[Budget], Different]

    def file_names(self) -> set[str]:
        """Return the names of the files with the policies' figures."""
        return {budget.file_name(name) for name in self.names for budget in self.budgets}


class RulerProtocol(Section):
    """Stage evaluate_retrieval: RULER's tasks that random words can make (arXiv 2404.06654)."""

    # as policies.names; full: full attention
    policies: Annotated[list[Policy | Literal["window", "full"]], Different]
    # every policy is scored at every budget
    budgets: Annotated[list[Budget], Different]
    # tokens of a text, question and answer included
    lengths: Annotated[list[Positive], Field(min_length=1), Different] = Field(
        default=[1024, 2048, 4096]
    )
    # texts per task and length
    samples: Positive = 10


class Evaluate(Section):
    """Stage evaluate_ppl: the protocols."""

    short: ShortProtocol = ShortProtocol()
    # test documents scored, the same by every protocol, so that differences are paired; at least
    # two, since the shuffled-memory protocol reads one with the memory of another; null: all
    documents: Annotated[int, Field(ge=2)] | None = None
    double_shift: DoubleShiftProtocol = DoubleShiftProtocol()
    full: FullProtocol
    window: WindowProtocol = WindowProtocol()
    passkey: PasskeyProtocol = PasskeyProtocol()
    # null: not scored
    recall: RecallProtocol | None = None

    @model_validator(mode="after")
    def _check_documents(self) -> Self:
        if (self.double_shift.documents or 0) > (self.documents or 10**9):
            raise InputError(
                f"double_shift.documents must be ≤ evaluate.documents ({self.documents}), "
                f"got {self.double_shift.documents}"
            )
        return self


class Cost(Section):
    """Stage measure_cost: time and memory of a version against the base's full cache."""

    # tokens read
    lengths: Annotated[
        list[Annotated[int, Field(ge=1, le=10**7)]], Field(min_length=1), Different
    ] = Field(default=[1024, 4096])
    # runs per length, of which the fastest counts
    repeats: Positive = 2
