"""Test text as it was prepared, and the protocols of params.yaml that score a model on it."""

import pandas as pd
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.choices import MemoryMode
from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation.config import Evaluate
from infini.evaluation.perplexity import (
    score_documents,
    score_double_shift,
    score_full_attention,
)
from infini.evaluation.retrieval_texts import Haystacks
from infini.evaluation.score import Score
from infini.model.architectures import context_length, vocabulary_size
from infini.model.retrofit import sliding_window
from infini.paths import DOCUMENTS, SAMPLES


class HeldOutText:
    """Test samples, documents and retrieval texts, the same for every model.

    Args:
        recipes: Section `evaluate` of params.yaml.
        segment_length: Tokens per segment.
        tokenizer: The base's.
    """

    def __init__(self, recipes: Evaluate, segment_length: int, tokenizer: Tokenizer):
        self.recipes, self.segment_length = recipes, segment_length
        samples, width = recipes.short.samples, segment_length
        self.samples = Pieces.load(SAMPLES / "test.parquet", samples, width=width)
        self.long_documents = Pieces.load(DOCUMENTS / "test.parquet", recipes.documents)
        self.haystacks = Haystacks(
            tokenizer, self.long_documents, segment_length, recipes.passkey, recipes.recall
        )

    def check(self, model: PreTrainedModel) -> None:
        """Raise InputError if the text has tokens beyond the model's vocabulary."""
        for pieces in (self.samples, self.long_documents):
            pieces.within(vocabulary_size(model))

    def short(self, model: PreTrainedModel) -> Score:
        """Score short samples, each by itself."""
        return score_documents(model, self.samples, self.segment_length, title="short")

    def documents(
        self, model: PreTrainedModel, memory: MemoryMode = "own", title: str = ""
    ) -> Score:
        """Score documents as the model reads them; see `score_documents`."""
        title = title or ("documents" if memory == "own" else f"documents, memory {memory}")
        return score_documents(model, self.long_documents, self.segment_length, memory, title)

    def double_shift(self, model: PreTrainedModel) -> Score:
        """Score some documents by the research log's loop."""
        some = self.long_documents.first(self.recipes.double_shift.documents)
        return score_double_shift(model, some, self.segment_length, title="double shift")

    def full(self, base: PreTrainedModel) -> Score:
        """Score documents by the untouched base's full attention."""
        recipe, longest = self.recipes.full, context_length(base)
        if longest is not None and recipe.context > longest:
            raise InputError(
                f"params.yaml: evaluate.full.context must be ≤ {longest}, the base's context, "
                f"got {recipe.context}"
            )
        return score_full_attention(
            base, self.long_documents, recipe.context, recipe.stride, title="full"
        )

    def window(self, base: PreTrainedModel, size: int) -> Score:
        """Score documents by the untouched base's sliding window of `size` tokens, with sinks."""
        sinks, longest = self.recipes.window.sinks, context_length(base)
        if longest is not None and size + sinks > longest:
            raise InputError(
                f"params.yaml: evaluate.window.sizes must be ≤ {longest - sinks}, "
                f"the base's context less {sinks} sinks, got {size}"
            )
        with sliding_window(base, size, sinks):
            title = f"window {size}"
            return score_documents(base, self.long_documents, self.segment_length, title=title)

    def tables(self, scores: dict[str, Score]) -> pd.DataFrame:
        """Return the loss tables (`Score.table`) of scores by protocol, in a column `protocol`."""
        tables = [
            score.table(self.segment_length).assign(protocol=name) for name, score in scores.items()
        ]
        return pd.concat(tables, ignore_index=True)
