"""Sections of params.yaml: which text, how it is split and cut."""

from typing import Annotated

from pydantic import Field, model_validator

from infini.errors import InputError
from infini.schema import Positive, Rate, Section, Share


class Shares(Section):
    """How documents are dealt out, by a hash of their id."""

    # trains the embedded base, and nothing else
    base: Share
    train: Rate
    val: Rate
    test: Rate

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
    # first test texts as long as a document that are left out: a recipe was chosen on them
    skip: Annotated[int, Field(ge=0, le=10**9)] = 0


class Data(Section):
    """Stage prepare_data: text into short samples and long documents."""

    # "sotu" (embedded), a folder of .txt or .jsonl files, or a hub dataset's name
    corpus: str
    shares: Shares
    # short samples for training, nine parts train and one part val
    samples: Annotated[int, Field(ge=2, le=10**9)]
    # long documents for training, nine parts train and one part val
    documents: Annotated[int, Field(ge=2, le=10**9)]
    # tokens a document
    document_length: Annotated[int, Field(ge=2, le=10**9)]
    # tokens a segment, and a short sample
    segment_length: Annotated[int, Field(ge=4, le=10**9)]
    test: TestSize
