"""Section of params.yaml: which text, and how it is split and cut."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from infini.errors import InputError
from infini.schema import Positive, Rate, Section, Share


class Shares(Section):
    """Shares of the documents that each split gets, by a hash of their id; they sum to 1."""

    # trains the embedded base only
    base: Share = 0.0
    train: Rate = 0.7
    val: Rate = 0.1
    test: Rate = 0.2

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        total = self.base + self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise InputError(f"must sum to 1, got {total:g}")
        return self


class TestSize(Section):
    """How much of split test is prepared."""

    samples: Positive = 50
    # at least two, since one is read with the memory of another
    documents: Annotated[int, Field(ge=2, le=10**9)] = 16
    # first documents that are left out, because a recipe was chosen on them
    skip: Annotated[int, Field(ge=0, le=10**9)] = 0


class Data(Section):
    """Stage prepare_data: text to short samples and long documents."""

    # "sotu" or "kjv" (embedded), a folder of .txt or .jsonl files, or a hub dataset's name
    corpus: str
    shares: Shares = Shares()
    # short samples for training, nine parts train and one part val
    samples: Annotated[int, Field(ge=2, le=10**9)] = 100
    # long documents for training, nine parts train and one part val
    documents: Annotated[int, Field(ge=2, le=10**9)] = 24
    # tokens per document
    document_length: Annotated[int, Field(ge=2, le=10**9)] = 4096
    # tokens per segment and per short sample
    segment_length: Annotated[int, Field(ge=4, le=10**9)]
    test: TestSize = TestSize()
