"""Retention policies of the untouched base at equal state bytes: the opponents of a memory.

Nothing is trained. The best policy of a budget is chosen on validation documents and judged on
test documents. Nats by document are committed, so that any two readings are compared document by
document from what is in Git.
"""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedModel

from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation.byte_budget import (
    policy_state_bytes,
    retained_pairs,
    retained_within,
    window_bytes,
)
from infini.evaluation.config import Budget
from infini.evaluation.estimates import by_piece
from infini.evaluation.perplexity import score_documents
from infini.evaluation.rounding import write_rounded_csv
from infini.evaluation.score import Score
from infini.memory.eviction import Oracle
from infini.model.fit_policy import fit_policy
from infini.model.future_attention import future_attention
from infini.model.modules import window_layers
from infini.model.retrofit import sliding_window
from infini.paths import POLICIES

FIT_DOCUMENTS = 4  # training documents that policies with tensors of their own are fitted to
NATS_DIGITS = 5  # significant, of a document's nats
POLICY_COLUMNS = [*("split", "piece", "text", "tokens", "bytes", "retained", "state_bytes", "nats")]


class DocumentSets(NamedTuple):
    """Documents of each split that policies are scored on or fitted to."""

    train: Pieces
    val: Pieces
    test: Pieces
    segment_length: int

    @property
    def scored(self) -> dict[str, Pieces]:
        """Documents that are scored, by split."""
        return {"val": self.val, "test": self.test}


def document_nats(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row a document of a loss table: piece, text, tokens, bytes, nats per token."""
    rows = by_piece(table).reset_index()
    return rows.assign(nats=rows["nats"] / rows["tokens"])


def score_policy(
    base: PreTrainedModel, name: str, budget: Budget, documents: DocumentSets, sinks: int
) -> pd.DataFrame:
    """Score a policy at the state bytes of a plain window.

    Args:
        base: The untouched base.
        name: One of `evaluate.policies.names`.
        budget: State bytes, and the window of the policy.
        documents: Documents of every split.
        sinks: First tokens that stay visible.

    Returns:
        A row a document, with `POLICY_COLUMNS`.

    Raises:
        InputError: The budget does not pay for the window and one retained pair.
    """
    if name == "window":
        read = _window_reading(base, budget.window_size, sinks, documents.segment_length)
    else:
        read = _policy_reading(base, name, budget, documents, sinks)
    tables = []
    for split, pieces in documents.scored.items():
        retained, state_bytes, score = read(pieces, f"{name}, {split}")
        sizes = {"retained": retained, "state_bytes": state_bytes}
        losses = document_nats(score.table(documents.segment_length))
        tables.append(losses.assign(split=split, **sizes))
    return pd.concat(tables)[POLICY_COLUMNS]


# Reads pieces: retained pairs, state bytes and losses
Read = Callable[[Pieces, str], tuple[int, int, Score]]


def _window_reading(base: PreTrainedModel, size: int, sinks: int, segment_length: int) -> Read:
    def read(pieces: Pieces, title: str) -> tuple[int, int, Score]:
        with sliding_window(base, size, sinks) as model:
            score = score_documents(model, pieces, segment_length, title=title)
        return 0, window_bytes(base, size, sinks), score

    return read


def _policy_reading(
    base: PreTrainedModel,
    name: str,
    budget: Budget,
    documents: DocumentSets,
    sinks: int,
) -> Read:
    policy: str | Oracle = Oracle({}) if name == "oracle" else name
    window, total = budget.policy_window, window_bytes(base, budget.window_size, sinks)
    retained = retained_within(base, policy, window, sinks, total)
    if not retained:
        raise InputError(
            f"params.yaml: evaluate.policies.budgets: window_size {budget.window_size} pays for no "
            f"retained pair beside policy_window {window}: lower policy_window"
        )

    def read(pieces: Pieces, title: str) -> tuple[int, int, Score]:
        state = policy_state_bytes(base, policy, window, sinks, retained)
        with retained_pairs(base, policy, window, sinks, retained) as model:
            if isinstance(policy, Oracle):
                score = _score_by_oracle(model, pieces, documents.segment_length, title)
            else:
                fit_policy(model, list(documents.train.first(FIT_DOCUMENTS).tokens))
                score = score_documents(model, pieces, documents.segment_length, title=title)
        return retained, state, score

    return read


def _score_by_oracle(
    model: PreTrainedModel, pieces: Pieces, segment_length: int, title: str
) -> Score:
    """Score documents one by one, each with the attention that its own queries pay."""
    scores = []
    for index in range(len(pieces)):
        piece = pieces.at(index)
        oracle = Oracle(future_attention(model, piece.tokens))
        for layer in window_layers(model).values():
            assert layer.retained is not None
            layer.retained.policy = oracle
        scores.append(score_documents(model, piece, segment_length, title=title))
    columns = zip(*((s.nats, s.scored, s.bytes, s.texts) for s in scores), strict=True)
    return Score(*(torch.cat(column) for column in columns))


def write_policy(name: str, budget: Budget, table: pd.DataFrame) -> None:
    """Write reports/policies/<name>-<window size>-<policy window>.csv."""
    file = POLICIES / f"{name}-{budget.window_size}-{budget.policy_window}.csv"
    write_rounded_csv(file, table, POLICY_COLUMNS[:-1], digits=NATS_DIGITS)
