"""Retrieval texts, and their scores against the models' own logits."""

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from infini.corpus.pieces import Pieces
from infini.errors import InputError
from infini.evaluation.config import PasskeyProtocol, RecallProtocol
from infini.evaluation.retrieval import last_segment_states, retrieval_metrics, score_retrieval
from infini.evaluation.retrieval_texts import Haystacks, RetrievalText
from infini.model.architectures import decoder_layers, output_head
from infini.model.forward import memory_mode
from infini.model.modules import infini_parameters
from infini.model.retrofit import retrofit, sliding_window
from infini.model.segmented.run import run_segments
from toy import bigram_model

L = 16
WINDOW: dict[str, Any] = {"window": 8, "sinks": 2, "update": "gated_delta"}
PASSKEY = PasskeyProtocol(lengths=[12, 14], depths=[0.0, 0.5, 1.0], samples=2)
RECALL = RecallProtocol(pairs=[1, 3], questions=1, segments=10, samples=2)


@pytest.fixture
def haystacks(base_folder: Path) -> Haystacks:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, 300, (3, 100), generator=generator)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    documents = Pieces(tokens, mask, tokens.sum(1), torch.arange(3))
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    return Haystacks(tokenizer, documents, L, PASSKEY, RECALL)


def decode(haystacks: Haystacks, tokens: Tensor) -> str:
    return str(haystacks.facts.tokenizer.decode(tokens))


def answer_of(text: RetrievalText, number: int = -1) -> Tensor:
    question = text.questions[number]
    return text.tokens[question.start : question.start + question.length]


def test_passkey_text_has_key_and_question(haystacks: Haystacks) -> None:
    found = [text for text in haystacks.texts() if text.task == "passkey"]
    again = [text for text in haystacks.texts() if text.task == "passkey"]
    cases = [(n, d, s) for n in (12, 14) for d in (0.0, 0.5, 1.0) for s in range(2)]
    assert [(t.segments, t.questions[0].depth, t.sample) for t in found] == cases
    texts = {}
    for case, text, other in zip(cases, found, again, strict=True):
        assert len(text.tokens) == case[0] * L
        assert torch.equal(text.tokens, other.tokens)
        (question,) = text.questions
        assert question.start + question.length == len(text.tokens)
        number, written = decode(haystacks, answer_of(text)).strip(), decode(haystacks, text.tokens)
        assert number.isdigit()
        assert written.count(number) == 3
        assert written.endswith(f"What is the pass key? The pass key is {number}")
        between = text.tokens[question.start - question.distance : question.start]
        assert decode(haystacks, text.tokens[: question.start - question.distance]).endswith(
            f"Remember it. {number} is the pass key."
        )
        assert number not in decode(haystacks, between)
        texts[case] = written
    for sample in range(2):
        assert texts[12, 0.0, sample].startswith(" The pass key is")
        assert " is the pass key. What is the pass key?" in texts[12, 1.0, sample]
        middle = texts[12, 0.5, sample].index("Remember") / len(texts[12, 0.5, sample])
        assert 0.2 < middle < 0.7
    assert len(set(texts.values())) == len(texts)


def test_recall_text_has_codes_and_questions(
    haystacks: Haystacks,
) -> None:
    haystacks.length = 64
    haystacks.recall = RecallProtocol(pairs=[2, 5], questions=2, segments=5, samples=3)
    found = [text for text in haystacks.texts() if text.task == "recall"]
    assert [(t.segments, t.pairs, t.sample) for t in found] == [
        (5, pairs, sample) for pairs in (2, 5) for sample in range(3)
    ]
    for text in found:
        assert len(text.tokens) == 5 * 64
        before, last = decode(haystacks, text.tokens[: 4 * 64]), ""
        assert before.count(" The code of ") >= text.pairs
        for number, question in enumerate(text.questions):
            code = decode(haystacks, answer_of(text, number))
            lead = decode(haystacks, text.tokens[: question.start])
            word = lead.removesuffix(" is").rpartition(" ")[2]
            statement, question_text = (
                f" The code of {word} is{code}.",
                f" What is the code of {word}? ",
            )
            assert before.count(statement) == 1
            assert lead.endswith(f"{question_text}The code of {word} is")
            fact_ends = text.tokens[: question.start - question.distance]
            assert decode(haystacks, fact_ends).endswith(statement)
            last += f"{question_text}The code of {word} is{code}."
        assert decode(haystacks, text.tokens).endswith(last.removesuffix("."))
    assert len({decode(haystacks, text.tokens) for text in found}) == len(found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"passkey": {"lengths": [2]}}, r"evaluate.passkey.lengths: .* 2 segments hold 32"),
        ({"recall": {"segments": 2}}, r"evaluate.recall.pairs: .* 2 segments hold 32"),
        (
            {"length": 128, "recall": {"segments": 2, "pairs": [6]}},
            r"evaluate.recall.pairs: 6 facts take \d+ tokens, .* before the last hold 128",
        ),
        (
            {"recall": {"questions": 2, "pairs": [2], "segments": 20}},
            r"evaluate.recall: the answers take \d+ tokens, the last segment holds 16",
        ),
    ],
)
def test_haystacks_reject_texts_too_short_for_the_facts(
    haystacks: Haystacks, changed: dict[str, Any], message: str
) -> None:
    haystacks.length = changed.get("length", L)
    haystacks.passkey = PASSKEY.model_copy(update=changed.get("passkey", {}))
    haystacks.recall = RECALL.model_copy(update=changed.get("recall", {}))
    with pytest.raises(InputError, match=message):
        list(haystacks.texts())


def with_memory(model: PreTrainedModel, method: str, layer: int = 0) -> PreTrainedModel:
    """Put in a memory that changes the outputs."""
    torch.manual_seed(1)
    options: dict[str, Any] = {
        "replace": {"layers": [layer], "local": "linear", "init": "random", "segment_length": L},
        "parallel": {"layers": [layer], "alpha": 1.0, "segment_length": L},
        "window": WINDOW,
    }[method]
    retrofit(model, method, **options)  # type: ignore[arg-type]
    if method == "window":
        for tensor in infini_parameters(model).values():
            tensor.data.add_(torch.randn_like(tensor), alpha=0.5)
    return model


@pytest.mark.parametrize(
    ("method", "layer"), [("replace", 0), ("replace", 1), ("parallel", 0), ("parallel", 1)]
)
def test_last_segment_states_match_a_whole_run(
    model: PreTrainedModel, method: str, layer: int
) -> None:
    with_memory(model, method, layer)
    tokens = torch.randint(300, (2, 5 * L))
    with torch.no_grad():
        whole, _ = run_segments(model, tokens, L)
        alone, _ = run_segments(model, tokens[:, -L:], L)
    torch.testing.assert_close(last_segment_states(model, tokens, L, "own"), whole[:, -L:])
    torch.testing.assert_close(last_segment_states(model, tokens, L, "off"), alone)
    assert not torch.allclose(whole[:, -L:], alone)
    assert all(not layer._forward_hooks for layer in decoder_layers(model))


def compare(
    table: pd.DataFrame, haystacks: Haystacks, suffix: str, logits: dict[int, Tensor]
) -> None:
    """Compare a suffix's columns with the logits (T, V) of whole texts by number."""
    rows = iter(table.to_dict("records"))
    for number, text in enumerate(haystacks.texts()):
        for question in text.questions:
            row = next(rows)
            assert row["text"] == number
            if number not in logits:
                assert pd.isna(row[f"log_prob{suffix}"])
                continue
            log_p = logits[number].double().log_softmax(-1)
            nats, ranks = 0.0, []
            for i in range(question.start, question.start + question.length):
                own = log_p[i - 1, text.tokens[i]]
                nats += own.item()
                ranks.append(int((log_p[i - 1] > own).sum()))
            assert row[f"log_prob{suffix}"] == pytest.approx(nats, abs=1e-4)
            assert row[f"rank{suffix}"] == sum(ranks) / question.length
            assert row[f"exact{suffix}"] == float(max(ranks) == 0)


@torch.no_grad()
def whole_logits(
    model: PreTrainedModel, haystacks: Haystacks, longest: int = 10**9
) -> dict[int, Tensor]:
    """Return the model's logits (T, V) of every text up to a length, by number."""
    return {
        number: model(text.tokens[None]).logits[0]
        for number, text in enumerate(haystacks.texts())
        if len(text.tokens) <= longest
    }


@pytest.mark.parametrize("method", ["replace", "parallel", "window"])
def test_score_retrieval_matches_the_versions_logits(
    model: PreTrainedModel, haystacks: Haystacks, method: str
) -> None:
    table = score_retrieval(with_memory(model, method), haystacks)
    assert len(table) == 12 + 4
    assert table["task"].tolist() == ["passkey"] * 12 + ["recall"] * 4
    assert (table["log_prob"] != table["log_prob_off"]).all()
    compare(table, haystacks, "", whole_logits(model, haystacks))
    with memory_mode(model, "off"):
        compare(table, haystacks, "_off", whole_logits(model, haystacks))


def test_score_retrieval_memory_off_is_the_bases_window(
    model: PreTrainedModel, haystacks: Haystacks
) -> None:
    with sliding_window(model, 8, 2):
        plain = whole_logits(model, haystacks)
    compare(score_retrieval(with_memory(model, "window"), haystacks), haystacks, "_off", plain)


def test_score_retrieval_of_the_base_by_full_attention(
    model: PreTrainedModel, haystacks: Haystacks
) -> None:
    haystacks.passkey = PasskeyProtocol(lengths=[8, 12], depths=[0.0, 0.5], samples=1)
    table = score_retrieval(model, haystacks, 8 * L)
    compare(table, haystacks, "_full", whole_logits(model, haystacks, 8 * L))
    assert table["log_prob_full"].notna().tolist() == [True] * 2 + [False] * 6
    assert retrieval_metrics(table)["passkey"]["log_prob_full"] == pytest.approx(
        table["log_prob_full"].mean(), rel=1e-5
    )
    assert "log_prob_full" not in retrieval_metrics(table)["recall"]
    assert "log_prob_full" not in score_retrieval(model, haystacks)


def test_retrieval_metrics_of_the_base_have_no_gain(
    model: PreTrainedModel, haystacks: Haystacks
) -> None:
    for found in retrieval_metrics(score_retrieval(model, haystacks)).values():
        assert found["gain"] == 0
        assert found["log_prob"] == found["log_prob_off"]


def test_retrieval_metrics_have_an_error_over_texts() -> None:
    table = pd.DataFrame({"task": "recall", "text": [4, 4, 5, 5], "log_prob": [1.0, 3.0, 4.0, 4.0]})
    figures = {f"{name}{suffix}": 0.0 for suffix in ("", "_off") for name in ("rank", "exact")}
    found = retrieval_metrics(table.assign(**figures, log_prob_off=0.0))
    assert found.keys() == {"recall"}
    assert found["recall"]["gain"] == 3.0
    assert found["recall"]["gain_se"] == 1.0  # of 2 and 4


def test_score_retrieval_of_a_model_that_knows_the_answer(haystacks: Haystacks) -> None:
    """One model predicts each token of the answer after the one before, another never."""
    haystacks.passkey = PasskeyProtocol(lengths=[12], depths=[0.5], samples=1)
    haystacks.recall = None
    (text,) = haystacks.texts()
    answer = text.tokens[text.questions[0].start - 1 :].tolist()
    followers = dict(itertools.pairwise(answer))
    assert len(followers) == len(answer) - 1  # no token of the answer has two followers
    (found,) = score_retrieval(bigram_model(followers), haystacks).to_dict("records")
    assert (found["exact"], found["rank"]) == (1, 0)
    assert -0.01 < found["log_prob"] < 0
    others = {token: (follower + 1) % 300 for token, follower in followers.items()}
    (found,) = score_retrieval(bigram_model(others), haystacks).to_dict("records")
    assert found["exact"] == 0
    assert found["rank"] >= 1


def test_score_retrieval_rejects_a_probability_that_is_not_finite(
    model: PreTrainedModel, haystacks: Haystacks
) -> None:
    output_head(model).weight[7, 0] = torch.nan
    with pytest.raises(InputError, match="passkey: a probability is not finite"):
        score_retrieval(model, haystacks)


def test_score_retrieval_counts_no_tie_as_exact(haystacks: Haystacks) -> None:
    undecided = bigram_model({})
    undecided.lm_head.weight.zero_()
    found = score_retrieval(undecided, haystacks)
    assert (found["exact"] == 0).all()
    assert (found["rank"] == undecided.lm_head.out_features - 1).all()
