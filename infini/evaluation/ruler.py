"""Retrieval with the question after the memory, for any causal model that reads with a cache.

The context of a text (`infini.corpus.ruler`) is read into the cache in chunks; then the cache goes
on with the question and the reference answer, which is scored as in `infini.evaluation.retrieval`.
So a retention policy decides what to keep before it sees the question. A small base rarely gives a
whole answer: the nats of the reference answer move where exact match does not. Both mean something
beside those of the base with full attention.
"""

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from infini.console.progress import progress
from infini.corpus.ruler import RulerText
from infini.errors import InputError
from infini.evaluation.cost import TOKENS_PER_CALL
from infini.evaluation.losses import BATCH_TOKENS
from infini.evaluation.retrieval import answer_figures
from infini.model.architectures import CACHE, cache_of, output_head, vocabulary_size

RULER_KEYS = ("task", "length", "sample", "depth", "distance")


@torch.no_grad()
def score_ruler(
    model: PreTrainedModel,
    texts: Sequence[RulerText],
    chunk_tokens: int = TOKENS_PER_CALL,
    title: str = "ruler",
) -> pd.DataFrame:
    """Score the answers of texts, question after the memory.

    Args:
        model: A causal model whose calls take and return a cache: a base, which reads by full
            attention, within `sliding_window` by a window; or a retrofitted model.
        texts: What `ruler_texts` built with the base's tokenizer.
        chunk_tokens: Tokens of the context per forward pass.
        title: Name in the progress bar; empty: no bar.

    Returns:
        A row per text, in their order: `RULER_KEYS`; tokens, of the whole text; answer_tokens;
        the figures of the answer (`answer_figures`): log_prob, rank, exact; and nats, −log_prob
        per token of the answer. An answer of several words has them in the order of the chain, of
        their first appearance (cwe) or of their frequency (fwe), and exact asks for that order.

    Raises:
        InputError: No text, a token beyond the model's vocabulary, or a probability that is not
            finite.
    """
    if not texts:
        raise InputError("texts must have ≥ 1 text, got 0")
    largest = max(int(part.max()) for text in texts for part in text.tokens)
    if largest >= vocabulary_size(model):
        raise InputError(
            f"texts: tokens must be < {vocabulary_size(model)}, the model's vocabulary, "
            f"got {largest}: build them with the model's own tokenizer"
        )
    rows: dict[int, dict[str, object]] = {}
    head = output_head(model)
    for batch in progress(list(_batches(texts)), title):
        hidden = _states_after_context(model, [texts[i] for i in batch], chunk_tokens)
        for states, i in zip(hidden, batch, strict=True):
            text, (context, question, answer) = texts[i], texts[i].tokens
            first = len(question) - 1
            predicting = states[first : first + len(answer)]  # (n, d)
            figures = answer_figures(head, predicting, answer.to(states.device), text.task)
            row: dict[str, object] = {name: getattr(text, name) for name in RULER_KEYS}
            row["tokens"] = len(context) + len(question) + len(answer)
            row["answer_tokens"] = len(answer)
            rows[i] = row | figures | {"nats": -figures["log_prob"] / len(answer)}
    table = pd.DataFrame([rows[i] for i in range(len(texts))])
    return table.astype({"depth": "float64", "distance": "Int64"})


def _batches(texts: Sequence[RulerText]) -> Iterator[list[int]]:
    """Yield indices of texts with contexts of equal length, as many as a forward pass takes."""
    by_length: dict[int, list[int]] = {}
    for i, text in enumerate(texts):
        by_length.setdefault(len(text.tokens.context), []).append(i)
    for length, indices in by_length.items():
        size = max(1, BATCH_TOKENS // length)
        yield from (indices[i : i + size] for i in range(0, len(indices), size))


def _states_after_context(
    model: PreTrainedModel, texts: list[RulerText], chunk_tokens: int
) -> Tensor:
    """Compute the last hidden states of questions and answers, (B, Q, d), after their contexts.

    The contexts are of equal length. Questions and answers are padded at their end, where padding
    changes nothing before it.
    """
    context = torch.stack([text.tokens.context for text in texts])  # (B, T)
    rest = [torch.cat([text.tokens.question, text.tokens.answer]) for text in texts]
    decoder, cache = model.get_decoder(), None
    for chunk in context.to(model.device).split(chunk_tokens, dim=1):
        cache = cache_of(decoder(chunk, use_cache=True, **{CACHE: cache}))
    padded = pad_sequence(rest, batch_first=True).to(model.device)  # (B, Q)
    hidden: Tensor = decoder(padded, use_cache=True, **{CACHE: cache}).last_hidden_state
    return hidden


def summarize_ruler(table: pd.DataFrame) -> pd.DataFrame:
    """Average the scores of texts by task and length.

    Args:
        table: What `score_ruler` returned.

    Returns:
        A row per task and length: texts, their number; exact and nats, means over texts, with
        their standard errors in exact_se and nats_se (missing for one text).
    """
    groups = table.groupby(["task", "length"], sort=False)[["exact", "nats"]]
    summary = groups.mean().join(groups.sem().add_suffix("_se")).assign(texts=groups.size())
    return summary[["texts", "exact", "exact_se", "nats", "nats_se"]].reset_index()
