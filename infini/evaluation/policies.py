"""Retention policies of the untouched base at equal state bytes: the opponents of a memory.

Nothing is trained. The best policy of a budget is chosen on validation documents and judged on
test documents. Nats by document are committed, so that any two readings are compared document by
document from what is in Git.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedModel

from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation.byte_budget import StateSize, full_attention_bytes, window_bytes
from infini.evaluation.config import ORACLE, PLAIN_WINDOW, Budget
from infini.evaluation.estimates import by_piece
from infini.evaluation.perplexity import score_documents
from infini.evaluation.rounding import Digits, write_rounded_csv
from infini.evaluation.score import Score
from infini.memory.eviction import Oracle, as_policy
from infini.model.fit_policy import FIT_DOCUMENTS, fit_policy
from infini.model.forward import policy_override
from infini.model.future_attention import future_attention
from infini.model.retrofit import retained_pairs, sliding_window
from infini.paths import POLICIES, RULER

NATS_DIGITS = Digits(significant=5)  # of a document's nats
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
        name: One of `policies.names`.
        budget: State bytes, and the window of the policy.
        documents: Documents of every split.
        sinks: First tokens that stay visible.

    Returns:
        A row a document, with `POLICY_COLUMNS`.

    Raises:
        InputError: The budget does not pay for the window and one retained pair.
    """
    segment, tables = documents.segment_length, []
    with policy_reading(base, name, budget, documents.train, sinks) as reading:
        for split, pieces in documents.scored.items():
            score = _score_by_oracle if name == ORACLE else score_documents
            losses = score(reading.model, pieces, segment, title=f"{name}, {split}").table(segment)
            sizes = {"retained": reading.retained, "state_bytes": reading.state_bytes}
            tables.append(document_nats(losses).assign(split=split, **sizes))
    return pd.concat(tables)[POLICY_COLUMNS]


class PolicyReading(NamedTuple):
    """A base that reads through a policy."""

    model: PreTrainedModel
    retained: int  # pairs of a key-value head
    state_bytes: int


@contextmanager
def policy_reading(
    base: PreTrainedModel, name: str, budget: Budget, train: Pieces, sinks: int
) -> Iterator[PolicyReading]:
    """Read with the untouched base through a policy within the block.

    Args:
        base: The base; it is restored after the block.
        name: A registered policy, `window`, `full` or `oracle`, whose policy is set by document.
        budget: State bytes, and the window of the policy; full attention takes what it needs.
        train: Documents to which policies with tensors of their own are fitted.
        sinks: First tokens that stay visible.

    Yields:
        The base, and its state.

    Raises:
        InputError: The budget does not pay for the window and one retained pair.
    """
    window, total = budget.policy_window, window_bytes(base, budget.window_size, sinks)
    if name == "full":
        yield PolicyReading(base, 0, full_attention_bytes(base, train.tokens.shape[1]))
    elif name == PLAIN_WINDOW:
        with sliding_window(base, budget.window_size, sinks) as model:
            yield PolicyReading(model, 0, total)
    else:
        policy: str | Oracle = Oracle({}) if name == ORACLE else name
        size = StateSize.by_retained(base, policy, window, sinks)
        retained = size.most_within(total)
        if not retained:
            raise InputError(
                f"params.yaml: budgets: window_size {budget.window_size} pays for no retained pair "
                f"of {name}: raise window_size or lower policy_window ({window})"
            )
        with retained_pairs(base, policy, window, sinks, retained) as model:
            if as_policy(policy).needs_fit:
                fit_policy(model, train.first(FIT_DOCUMENTS).unpadded())
            yield PolicyReading(model, retained, size.of(retained))


def _score_by_oracle(
    model: PreTrainedModel, pieces: Pieces, segment_length: int, *, title: str
) -> Score:
    """Score documents one by one, each with the attention that its own queries pay."""
    scores = []
    for index in range(len(pieces)):
        piece = pieces.at(index)
        piece = piece.shortened(int(piece.mask.sum()))
        oracle = Oracle(future_attention(model, piece.tokens))
        with policy_override(model, oracle):
            scores.append(score_documents(model, piece, segment_length, title=title))
    columns = zip(*((s.nats, s.scored, s.bytes, s.texts) for s in scores), strict=True)
    return Score(*(torch.cat(column) for column in columns))


def write_policy(name: str, budget: Budget, table: pd.DataFrame) -> None:
    """Write reports/policies/<name>-<window size>-<policy window>.csv."""
    file = POLICIES / budget.file_name(name)
    write_rounded_csv(file, table, POLICY_COLUMNS[:-1], digits=NATS_DIGITS)


def write_retrieval(
    name: str, budget: Budget, summary: pd.DataFrame, reading: PolicyReading
) -> None:
    """Write reports/ruler/<name>-<window size>-<policy window>.csv.

    Args:
        name: The policy.
        budget: State bytes, and the window of the policy.
        summary: What `summarize_ruler` returned.
        reading: How the texts were read.
    """
    file = RULER / budget.file_name(name)
    table = summary.assign(retained=reading.retained, state_bytes=reading.state_bytes)
    keys = ["task", "length", "texts", "retained", "state_bytes"]
    write_rounded_csv(file, table, keys, {"exact": "exact_se", "nats": "nats_se"})
