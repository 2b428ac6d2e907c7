"""Scores of retrieval tasks against transformers' own forward pass over the whole text."""

import itertools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from infini.corpus.ruler import RULER_TASKS, RulerText, RulerTokens, ruler_texts
from infini.errors import InputError
from infini.evaluation.ruler import score_ruler, summarize_ruler
from infini.model.architectures import output_head
from infini.model.modules import infini_parameters
from infini.model.retrofit import retrofit, sliding_window
from toy import bigram_model

METHODS: dict[str, dict[str, Any]] = {
    "window": {"window": 8, "sinks": 2, "retained": 4, "update": "gated_delta"},
    "parallel": {"layers": [0], "alpha": 1.0, "segment_length": 16},
}


def text_of(sample: int, context: int, question: int, answer: int) -> RulerText:
    """Return a text of random tokens."""
    generator = torch.Generator().manual_seed(sample)
    sizes = [context, question, answer]
    parts = torch.randint(300, (sum(sizes),), generator=generator).split(sizes)
    return RulerText("records_last", 80, sample, "", "", "", 1.0, question, RulerTokens(*parts))


# Three contexts of one length, with questions and answers of different ones
TEXTS = [text_of(0, 50, 5, 3), text_of(1, 50, 9, 1), text_of(2, 61, 1, 4), text_of(3, 50, 2, 6)]


def reading_by(method: str, model: PreTrainedModel) -> AbstractContextManager[object]:
    """Put a memory that changes the outputs into the base, or return a window of the base."""
    torch.manual_seed(1)
    if method in METHODS:
        retrofit(model, method, **METHODS[method])  # type: ignore[arg-type]
        for tensor in infini_parameters(model).values():
            tensor.data.add_(torch.randn_like(tensor), alpha=0.5)
    return sliding_window(model, 8, 2) if method == "sliding window" else nullcontext()


@torch.no_grad()
def naive_figures(model: PreTrainedModel, text: RulerText) -> dict[str, float]:
    """Score an answer token by token, each from the logits of the whole text."""
    tokens = torch.cat(text.tokens)
    log_p: Tensor = model(tokens[None]).logits[0].double().log_softmax(-1)  # (T, V)
    own, ranks = 0.0, []
    for i in range(len(tokens) - len(text.tokens.answer), len(tokens)):
        own += log_p[i - 1, tokens[i]].item()
        ranks.append(int((log_p[i - 1] > log_p[i - 1, tokens[i]]).sum()))
    n = len(ranks)
    exact = float(max(ranks) == 0)
    return {"log_prob": own, "nats": -own / n, "rank": sum(ranks) / n, "exact": exact}


@pytest.mark.parametrize("method", ["full attention", "sliding window", *METHODS])
@pytest.mark.parametrize("chunk_tokens", [17, 1024])
def test_score_ruler_matches_the_whole_text(
    model: PreTrainedModel, method: str, chunk_tokens: int
) -> None:
    with reading_by(method, model):
        table = score_ruler(model, TEXTS, chunk_tokens, title="")
        for row, text in zip(table.to_dict("records"), TEXTS, strict=True):
            for name, value in naive_figures(model, text).items():
                assert row[name] == pytest.approx(value, abs=1e-4)
    assert table["sample"].tolist() == [0, 1, 2, 3]
    assert table["tokens"].tolist() == [58, 60, 66, 58]
    assert table["answer_tokens"].tolist() == [3, 1, 4, 6]


def test_score_ruler_reads_the_context_before_the_question(model: PreTrainedModel) -> None:
    calls: list[Tensor] = []
    hook = lambda module, args: calls.append(args[0].clone())  # noqa: E731
    model.get_decoder().register_forward_pre_hook(hook)
    score_ruler(model, TEXTS[:2], chunk_tokens=20, title="")
    calls = [call for call in calls if call.shape[0] == 2]
    assert [call.shape for call in calls] == [(2, 20), (2, 20), (2, 10), (2, 10)]
    for i, text in enumerate(TEXTS[:2]):
        assert torch.equal(torch.cat(calls[:3], 1)[i], text.tokens.context)
        rest = torch.cat(text.tokens[1:])
        assert torch.equal(calls[3][i, : len(rest)], rest)


def test_score_ruler_of_all_tasks(model: PreTrainedModel, base_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    texts = list(ruler_texts(tokenizer, lengths=[2500], samples=1))
    table = score_ruler(model, texts, title="")
    assert table["task"].tolist() == list(RULER_TASKS)
    for row, text in zip(table.to_dict("records"), texts, strict=True):
        assert row["nats"] == pytest.approx(naive_figures(model, text)["nats"], abs=1e-4)
    one_line = table["task"].str.startswith(("niah", "records"))
    for name in ("depth", "distance"):
        assert (table[name].notna() == one_line).all()


def test_score_ruler_of_a_model_that_knows_the_answer() -> None:
    text = text_of(6, 50, 5, 6)
    answer = torch.cat([text.tokens.question[-1:], text.tokens.answer]).tolist()
    followers = dict(itertools.pairwise(answer))
    assert len(followers) == len(answer) - 1  # no token of the answer has two followers
    (row,) = score_ruler(bigram_model(followers), [text], title="").to_dict("records")
    assert (row["exact"], row["rank"]) == (1, 0)
    assert 0 < row["nats"] < 0.01
    others = {token: (follower + 1) % 300 for token, follower in followers.items()}
    (row,) = score_ruler(bigram_model(others), [text], title="").to_dict("records")
    assert row["exact"] == 0


def test_score_ruler_needs_no_gradient(model: PreTrainedModel) -> None:
    model.requires_grad_(True)
    score_ruler(model, TEXTS[:1], title="")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_score_ruler_rejects_what_it_cannot_score(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match=r"texts must have ≥ 1 text, got 0"):
        score_ruler(model, [])
    foreign = RulerTokens(*(torch.tensor([300]) for _ in range(3)))
    with pytest.raises(InputError, match=r"texts: tokens must be < 300, the model's vocab.* 300:"):
        score_ruler(model, [TEXTS[0]._replace(tokens=foreign)])
    output_head(model).weight[7, 0] = torch.nan
    with pytest.raises(InputError, match="records_last: a probability is not finite"):
        score_ruler(model, TEXTS)


def test_summarize_ruler_has_means_and_standard_errors() -> None:
    rows = [("vt", 10, 1.0, 2.0), ("vt", 10, 0.0, 4.0), ("cwe", 10, 0.0, 5.0)]
    table = pd.DataFrame(rows, columns=["task", "length", "exact", "nats"])
    summary = summarize_ruler(table).set_index("task")
    assert summary.index.tolist() == ["vt", "cwe"]
    assert summary.loc["vt"].tolist() == [10, 2, 0.5, 0.5, 3.0, 1.0]
    assert summary.loc["cwe", ["texts", "exact", "nats"]].tolist() == [1, 0, 5]
    assert summary.loc["cwe", ["exact_se", "nats_se"]].isna().all()
