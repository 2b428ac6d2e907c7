"""The prepared test text, and every protocol of params.yaml over it."""

from collections.abc import Callable

import pandas as pd
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation import perplexity
from infini.evaluation.config import Evaluate, LongProtocol
from infini.evaluation.passkey import Haystacks
from infini.evaluation.score import Score
from infini.model.architectures import context_of
from infini.paths import DOCUMENTS, SAMPLES


class HeldOutText:
    """What every model is scored on."""

    def __init__(self, recipes: Evaluate, segment_length: int, tokenizer: Tokenizer):
        self.recipes, self.segment_length = recipes, segment_length
        samples, width = recipes.short.samples, segment_length
        self.samples = Pieces.load(SAMPLES / "test.parquet", samples, width=width)
        long = (recipes.segmented, recipes.memory_off, recipes.double_shift, recipes.sliding)
        most = max(recipe.documents for recipe in long)
        self.documents = Pieces.load(DOCUMENTS / "test.parquet", most)
        self.haystacks = Haystacks(tokenizer, self.documents, segment_length, recipes.passkey)

    def first(self, recipe: LongProtocol) -> Pieces:
        """The documents that a protocol scores."""
        return self.documents.first(recipe.documents)

    def losses(self, model: PreTrainedModel, *protocols: str) -> pd.DataFrame:
        """Loss tables (see `Score.table`) of the named protocols, in a column `protocol`."""
        tables = [
            PROTOCOLS[name](model, self).table(self.segment_length).assign(protocol=name)
            for name in protocols
        ]
        return pd.concat(tables, ignore_index=True)


def _short(model: PreTrainedModel, text: HeldOutText) -> Score:
    return perplexity.segmented(model, text.samples, text.segment_length, title="short")


def _segmented(model: PreTrainedModel, text: HeldOutText) -> Score:
    documents = text.first(text.recipes.segmented)
    return perplexity.segmented(model, documents, text.segment_length, title="segmented")


def _memory_off(model: PreTrainedModel, text: HeldOutText) -> Score:
    documents, length = text.first(text.recipes.memory_off), text.segment_length
    return perplexity.segmented(model, documents, length, memory=False, title="memory off")


def _double_shift(model: PreTrainedModel, text: HeldOutText) -> Score:
    documents = text.first(text.recipes.double_shift)
    return perplexity.double_shift(model, documents, text.segment_length, title="double shift")


def _sliding(model: PreTrainedModel, text: HeldOutText) -> Score:
    recipe, longest = text.recipes.sliding, context_of(model)
    if longest is not None and recipe.context > longest:
        raise InputError(
            f"params.yaml: evaluate.sliding.context: the base reads {longest} tokens at most, "
            f"got {recipe.context}"
        )
    documents = text.first(recipe)
    return perplexity.sliding(model, documents, recipe.context, recipe.stride, title="sliding")


PROTOCOLS: dict[str, Callable[[PreTrainedModel, HeldOutText], Score]] = {
    "short": _short,
    "segmented": _segmented,
    "memory_off": _memory_off,
    "double_shift": _double_shift,
    "sliding": _sliding,
}
