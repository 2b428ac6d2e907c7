"""The prepared test text, and every protocol of params.yaml over it."""

import pandas as pd
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.choices import MemoryMode
from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation import perplexity
from infini.evaluation.config import Evaluate
from infini.evaluation.retrieval import Haystacks
from infini.evaluation.score import Score
from infini.model.architectures import context_length, vocabulary_size
from infini.model.window.install import windowed
from infini.paths import DOCUMENTS, SAMPLES


class HeldOutText:
    """What every model is scored on, and the protocols that score it."""

    def __init__(self, recipes: Evaluate, segment_length: int, tokenizer: Tokenizer):
        self.recipes, self.segment_length = recipes, segment_length
        samples, width = recipes.short.samples, segment_length
        self.samples = Pieces.load(SAMPLES / "test.parquet", samples, width=width)
        self.long = Pieces.load(DOCUMENTS / "test.parquet", recipes.documents)
        hidden = recipes.passkey, recipes.recall
        self.haystacks = Haystacks(tokenizer, self.long, segment_length, *hidden)

    def check(self, model: PreTrainedModel) -> None:
        """InputError where the text has tokens that the model does not know."""
        for pieces in (self.samples, self.long):
            pieces.within(vocabulary_size(model))

    def short(self, model: PreTrainedModel) -> Score:
        """Samples, each alone."""
        return perplexity.documents(model, self.samples, self.segment_length, title="short")

    def documents(
        self, model: PreTrainedModel, memory: MemoryMode = "own", title: str = ""
    ) -> Score:
        """Documents as the model reads them: a version its own way, an untouched base by blind
        segments."""
        title = title or ("documents" if memory == "own" else f"documents, memory {memory}")
        return perplexity.documents(model, self.long, self.segment_length, memory, title)

    def double_shift(self, model: PreTrainedModel) -> Score:
        """The log's loop, on some of the documents."""
        some = self.long.first(self.recipes.double_shift.documents)
        return perplexity.double_shift(model, some, self.segment_length, title="double shift")

    def full(self, base: PreTrainedModel) -> Score:
        """Full attention: the untouched base's ceiling."""
        recipe, longest = self.recipes.full, context_length(base)
        if longest is not None and recipe.context > longest:
            raise InputError(
                f"params.yaml: evaluate.full.context: the base reads {longest} tokens at most, "
                f"got {recipe.context}"
            )
        return perplexity.sliding(base, self.long, recipe.context, recipe.stride, title="full")

    def window(self, base: PreTrainedModel, size: int) -> Score:
        """The untouched base with the first tokens and the last `size`: what anyone gets."""
        sinks, longest = self.recipes.window.sinks, context_length(base)
        if longest is not None and size + sinks > longest:
            raise InputError(
                f"params.yaml: evaluate.window.sizes: with {sinks} sinks the base reads "
                f"{longest - sinks} tokens at most, got {size}"
            )
        with windowed(base, size, sinks):
            title = f"window {size}"
            return perplexity.documents(base, self.long, self.segment_length, title=title)

    def tables(self, scores: dict[str, Score]) -> pd.DataFrame:
        """Loss tables (see `Score.table`) by protocol's name, in a column `protocol`."""
        tables = [
            score.table(self.segment_length).assign(protocol=name) for name, score in scores.items()
        ]
        return pd.concat(tables, ignore_index=True)
