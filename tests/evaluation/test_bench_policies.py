"""`infini.bench` against slow loops over texts and tokens."""

import copy
import logging
import math
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import infini
from infini.errors import InputError
from infini.evaluation.byte_budget import StateSize
from infini.evaluation.cost import cache_after, state_bytes
from infini.memory.eviction import A2SF
from infini.model.base import load_tokenizer
from infini.model.retrofit import remove, retrofit
from toy import sentence

SINKS, WINDOW, BUDGET = 2, 4, 11_000  # a full cache of 56 tokens takes more
TEXTS = [sentence(50, 1), sentence(80, 2), sentence(62, 3)]
POLICIES = ("h2o", "tova", "keydiff")


@pytest.fixture
def tokenizer(base_folder: Path) -> Tokenizer:
    return load_tokenizer(str(base_folder))


def ids_of(text: str, tokenizer: Tokenizer) -> Tensor:
    return tokenizer(text, return_tensors="pt").input_ids[0, :56]


@torch.no_grad()
def token_by_token(model: PreTrainedModel, ids: Tensor) -> list[float]:
    """Return nats by token, read one token at a time."""
    losses, cache = [], None
    for token, target in pairwise(ids):
        out = model(token[None, None], cache=cache, use_cache=True)
        cache = out.cache
        losses.append(-out.logits[0, -1].double().log_softmax(-1)[target].item())
    return losses


@torch.no_grad()
def whole_text(model: PreTrainedModel, ids: Tensor) -> list[float]:
    log_p = model(ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return (-log_p.gather(1, ids[1:, None])[:, 0]).tolist()


def assert_paired(row: pd.Series, name: str, less: list[list[float]], more: list[list[float]]):
    """Compare a difference of two rows with that of the loops, error included."""
    differences = [sum(b) - sum(a) for a, b in zip(less, more, strict=True)]
    counts = [len(text) for text in less]
    mean, n = sum(differences) / sum(counts), len(counts)
    squares = sum((x - mean * c) ** 2 for x, c in zip(differences, counts, strict=True))
    error = math.sqrt(n / (n - 1) * squares) / sum(counts)
    assert row[name] == pytest.approx(mean, rel=1e-3, abs=2e-6)
    assert row[f"{name}_se"] == pytest.approx(error, rel=1e-3, abs=2e-6)


def test_rows_match_slow_loops(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    options = {"window": WINDOW, "sinks": SINKS, "max_tokens": 56, "tokenizer": tokenizer}
    before = copy.deepcopy(model.state_dict())
    table = infini.bench(model, TEXTS, BUDGET, policies=POLICIES, **options)
    assert model.state_dict().keys() == before.keys()
    assert table["policy"].tolist() == ["window", *POLICIES, "full"]
    ids = [ids_of(text, tokenizer) for text in TEXTS]
    assert max(map(len, ids)) == 56
    losses = {"full": [whole_text(model, row) for row in ids]}
    rows = table.set_index("policy")
    for name in ("window", *POLICIES):
        row, own = rows.loc[name], {"window": int(rows.loc[name, "window"]), "sinks": SINKS}
        if name == "window":
            held = retrofit(model, "window", layers=[], **own)
        else:
            retained = StateSize.by_retained(model, name, WINDOW, SINKS).most_within(BUDGET)
            assert (row["window"], row["retained"]) == (WINDOW, retained)
            held = retrofit(model, "window", update="none", retained=retained, policy=name, **own)
        losses[name] = [token_by_token(held, text) for text in ids]
        longest = max(ids, key=len)[None, :-1]
        assert row["state_bytes"] == state_bytes(cache_after(held, longest)).total <= BUDGET
        remove(held)
    best = min(losses.keys() - {"full"}, key=lambda name: sum(map(sum, losses[name])))
    for name, own in losses.items():
        row = rows.loc[name]
        assert row["nats"] == pytest.approx(sum(map(sum, own)) / row["tokens"], rel=1e-5)
        assert row["tokens"] == sum(map(len, ids)) - 3
        assert row["tokens_per_second"] > 0
        if name not in ("window", "full"):
            assert_paired(row, "gain", own, losses["window"])
        if name not in (best, "full"):
            assert_paired(row, "behind", losses[best], own)
    assert rows.loc[best, "behind"] == 0
    assert rows.loc[["window", "full"], "gain"].isna().all()


def test_no_row_is_above_its_budget(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    budgets = ("14.5K", 15_000)
    table = infini.bench(model, TEXTS, budgets, policies="all", sinks=1, tokenizer=tokenizer)
    limited = table[table["budget"].notna()]
    assert sorted(set(limited["budget"])) == [14_500, 15_000]
    assert (limited["state_bytes"] <= limited["budget"]).all()
    assert len(limited) > 20
    assert (limited.loc[limited["policy"] != "window", "window"] == 16).all()


def test_saved_model_is_compared_at_its_own_bytes(
    model: PreTrainedModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    untouched = copy.deepcopy(model)
    retrofit(model, "window", window=6, sinks=2, retained=3, update="gated_delta")
    model.save_pretrained(tmp_path / "mine")
    bytes_held = infini.evaluate(model, TEXTS, tokenizer=tokenizer).loc["model"]
    table = infini.bench(
        untouched, TEXTS, BUDGET, policies=("tova",), window=WINDOW, sinks=SINKS,
        saved=tmp_path / "mine", tokenizer=tokenizer,
    )  # fmt: skip
    row = table[table["policy"] == str(tmp_path / "mine")].iloc[0]
    assert row["nats"] == pytest.approx(bytes_held["nats"], rel=1e-5)
    assert row["budget"] == row["state_bytes"] == bytes_held["state_bytes"]
    peers = table[table["budget"] == row["budget"]]["policy"].tolist()
    assert peers == ["window", "tova", str(tmp_path / "mine")]


def test_learned_policies_are_among_the_default_where_texts_are_given(
    model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    options = {"window": WINDOW, "sinks": SINKS, "tokenizer": tokenizer}
    table = infini.bench(model, TEXTS, BUDGET, fit_texts=[sentence(300, 9)], **options)
    assert {"a2sf", "learned", "learned_no_attention"} < set(table["policy"])


def test_policies_are_fitted_to_other_texts(
    model: PreTrainedModel, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"window": WINDOW, "sinks": SINKS, "tokenizer": tokenizer}
    names = ("q_filter", "tova")
    with caplog.at_level(logging.WARNING):
        table = infini.bench(model, TEXTS, BUDGET, policies=names, **options)
    assert table["policy"].tolist() == ["window", "tova", "full"]
    assert caplog.messages == [
        "q_filter must be fitted, and fit_texts (--fit-text) is not given: left out"
    ]
    other = [sentence(60, 9)]
    table = infini.bench(model, TEXTS, BUDGET, policies=names, fit_texts=other, **options)
    row = table.set_index("policy").loc["q_filter"]
    held = int(row["retained"])
    retrofit(
        model, "window", window=WINDOW, sinks=SINKS, update="none", retained=held, policy="q_filter"
    )
    infini.fit_policy(model, other, tokenizer)
    ids = [tokenizer(text, return_tensors="pt").input_ids[0] for text in TEXTS]
    losses = [token_by_token(model, text) for text in ids]
    assert row["nats"] == pytest.approx(sum(map(sum, losses)) / row["tokens"], rel=1e-5)


def test_budget_that_does_not_pay_for_a_policy_is_named(
    model: PreTrainedModel, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"policies": ("h2o",), "window": 8, "sinks": 2, "tokenizer": tokenizer}
    with caplog.at_level(logging.WARNING):
        table = infini.bench(model, TEXTS, (5_000, 13_000, "1G"), **options)
    assert table["policy"].tolist() == ["window", "window", "h2o", "full"]
    small, large = caplog.messages
    assert small.startswith("5 kB: h2o needs 1")
    assert large.startswith("1 GB holds the longest text whole")
    with pytest.raises(InputError, match=r"state_bytes must be ≥ 1\d,\d{3}, what a window of 8"):
        infini.bench(model, TEXTS, 5_000, **options)
    with pytest.raises(InputError, match="state_bytes must be < "):
        infini.bench(model, TEXTS, "1G", **options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"state_bytes": "4X"}, "state_bytes must be bytes, such as 4000000, '4M' or '4MiB'"),
        ({"state_bytes": []}, "state_bytes must be a list of ≥ 1 budget"),
        ({"state_bytes": 0}, "state_bytes must be bytes"),
        ({"policies": "tovva"}, "policy must be one of"),
        ({"policies": ()}, "policies must have ≥ 1 policy"),
        ({"policies": "q_filter"}, "policies must have ≥ 1 policy that can be used"),
        ({"saved": "nowhere"}, "nowhere: no saved model"),
        ({"window": 0}, "window must be ≥ 1, got 0"),
        ({"max_tokens": 1}, "max_tokens must be ≥ 2, got 1"),
        ({"texts": []}, "texts must have ≥ 1 text"),
        ({"fit_texts": TEXTS[:1]}, "text 1: a text of fit_texts must not be scored too"),
    ],
)
def test_invalid_options_are_refused(
    changed: dict[str, object], message: str, model: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    options = {"texts": TEXTS, "state_bytes": BUDGET, "tokenizer": tokenizer} | changed
    with pytest.raises(InputError) as error:
        infini.bench(model, **options)
    assert str(error.value).startswith(message)


def test_policies_of_one_name_are_refused(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"^policies: two are named 'a2sf'"):
        infini.bench(model, TEXTS, "20K", policies=["a2sf", A2SF(0.1)], tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"^policies must be a list of names"):
        infini.bench(model, TEXTS, "20K", policies=3, tokenizer=tokenizer)


def test_model_with_a_memory_is_refused(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    retrofit(model, "window", window=8)
    with pytest.raises(InputError, match="model must be a base without a memory"):
        infini.bench(model, TEXTS, BUDGET, tokenizer=tokenizer)
