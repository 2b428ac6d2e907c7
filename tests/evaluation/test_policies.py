"""Scores of retention policies at equal state bytes."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

import infini
from infini.choices import RETENTION_BLOCK
from infini.errors import InputError
from infini.evaluation.byte_budget import window_bytes
from infini.evaluation.config import Budget
from infini.evaluation.perplexity import score_documents
from infini.evaluation.policies import (
    DocumentSets,
    policy_reading,
    score_policy,
    write_policy,
    write_retrieval,
)
from infini.memory.eviction import policy_by_name
from infini.model.future_attention import future_attention
from infini.model.retrofit import sliding_window
from infini.paths import POLICIES
from infini.report.policies import read_ruler
from infini.report.tables import ruler_table
from toy import some_pieces

SINKS = 2
BUDGET = Budget(window_size=52, policy_window=8)


@pytest.fixture
def documents() -> DocumentSets:
    lengths = [200, 150, 200, 90, 200], [200], [200, 200]
    train, val, test = (some_pieces(own, 200, seed) for seed, own in enumerate(lengths))
    return DocumentSets(train, val, test, segment_length=32)


def test_plain_window_is_scored_as_it_is(model: PreTrainedModel, documents: DocumentSets) -> None:
    table = score_policy(model, "window", BUDGET, documents, SINKS)
    with sliding_window(model, 52, SINKS):
        expected = score_documents(model, documents.test, 32)
    own = table[table["split"] == "test"]
    assert own["nats"].tolist() == pytest.approx((expected.nats.sum(1) / 199).tolist(), rel=1e-6)
    assert own["tokens"].tolist() == [199, 199]
    assert set(table["state_bytes"]) == {window_bytes(model, 52, SINKS)}


@pytest.mark.parametrize("policy", ["h2o", "knorm", "q_filter"])
def test_policy_has_at_most_the_bytes_of_the_window(
    model: PreTrainedModel, documents: DocumentSets, policy: str
) -> None:
    table = score_policy(model, policy, BUDGET, documents, SINKS)
    total, [state_bytes] = window_bytes(model, 52, SINKS), set(table["state_bytes"])
    [retained] = set(table["retained"])
    assert total - 2000 < state_bytes <= total
    options = {"window": 8, "sinks": SINKS, "update": "none", "retained": retained}
    infini.retrofit(model, "window", **options, policy=policy)
    tokens = zip(documents.train.tokens[:4], [200, 150, 200, 90], strict=True)
    if policy_by_name(policy).needs_fit:
        infini.fit_policy(model, [row[:length] for row, length in tokens])
    expected = score_documents(model, documents.test, 32)
    own = table[table["split"] == "test"]
    assert own["nats"].tolist() == pytest.approx((expected.nats.sum(1) / 199).tolist(), rel=1e-6)


def test_budget_below_the_window_is_refused(
    model: PreTrainedModel, documents: DocumentSets
) -> None:
    with pytest.raises(InputError, match="window_size 20 pays for no retained pair"):
        score_policy(model, "tova", Budget(window_size=20, policy_window=8), documents, SINKS)


def test_future_attention_is_the_base_s_sum_of_squares_by_block(model: PreTrainedModel) -> None:
    tokens = torch.randint(300, (2, 50), generator=torch.Generator().manual_seed(0))
    model.set_attn_implementation("eager")
    attentions = model(tokens, output_attentions=True).attentions
    infini.retrofit(model, "window", window=8, update="none", retained=4)
    found = future_attention(model, tokens)
    for layer, weights in enumerate(attentions):  # (B, H, T, T)
        blocks = weights.split(RETENTION_BLOCK, 2)
        expected = torch.stack([block.square().sum(2) for block in blocks], 2)  # G = H
        torch.testing.assert_close(found[layer], expected, rtol=1e-4, atol=1e-6)


def test_oracle_reads_every_document_with_its_own_attention(
    model: PreTrainedModel, documents: DocumentSets
) -> None:
    table = score_policy(model, "oracle", BUDGET, documents, SINKS)
    alone = documents._replace(test=documents.test.at(1))
    again = score_policy(model, "oracle", BUDGET, alone, SINKS)
    assert table["nats"].iloc[-1] == pytest.approx(again["nats"].iloc[-1], rel=1e-6)
    assert not hasattr(model, "infini_config")


def test_write_policy_keeps_five_digits(
    documents: DocumentSets, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = score_policy(model, "window", BUDGET, documents, SINKS)
    write_policy("window", BUDGET, table)
    written = pd.read_csv(POLICIES / "window-52-8.csv")
    assert written["nats"].tolist() == [float(f"{x:.5g}") for x in table["nats"]]
    assert written["split"].tolist() == ["val", "test", "test"]


def test_retrieval_is_written_by_task_and_length(
    documents: DocumentSets, model: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    summary = pd.DataFrame(
        {"task": ["vt", "cwe"], "length": [96, 96], "texts": [4, 4], "exact": [0.25, 0.0],
         "exact_se": [0.25, 0.0], "nats": [3.14159, 2.5], "nats_se": [0.1, 0.2]}
    )  # fmt: skip
    token = window_bytes(model, 1, 0 + 1)
    for name, total in (("full", 200), ("window", 53)):
        with policy_reading(model, name, BUDGET, documents.train, SINKS) as reading:
            assert reading.retained == 0
            assert reading.state_bytes == total * token
        write_retrieval(name, BUDGET, summary, reading)
    tables = read_ruler()
    assert list(tables) == ["full", "window, 52 tokens"]
    table = ruler_table(tables, "nats")
    assert table.loc["vt, 96 tokens"].tolist() == ["3.14 ± 0.10", "3.14 ± 0.10"]
    assert ruler_table(tables, "exact").loc["cwe, 96 tokens", "full"] == "0"
