"""`infini.evaluate` against slow loops over Hugging Face's own forward pass."""

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3TextConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

import infini
from architectures import IN_TURN, WIDE
from infini.errors import InputError
from infini.evaluation.cost import cache_after, state_bytes
from infini.evaluation.losses import BATCH_TOKENS
from infini.evaluation.perplexity import score_documents, score_in_chunks
from infini.memory.eviction.policy import HeldPairs
from infini.model.base import load_base, load_tokenizer
from infini.model.modules import infini_parameters
from infini.model.retrofit import retrofit, sliding_window
from toy import sentence, some_pieces

CONTEXT, SINKS = 64, 2
TEXTS = [sentence(40, 1), sentence(9, 2), sentence(70, 3), sentence(25, 4)]


class LongestValues(infini.RetentionPolicy):
    """A policy of a user's own, not registered: the longest values stay."""

    def score(self, pairs: HeldPairs) -> Tensor:
        return pairs.values.float().norm(dim=-1)


@pytest.fixture
def tokenizer(base_folder: Path) -> Tokenizer:
    return load_tokenizer(str(base_folder))


@pytest.fixture
def base(model: PreTrainedModel) -> PreTrainedModel:
    """Return a base of one layer: its keys and values do not depend on what a token has seen."""
    model.config.num_hidden_layers = 1
    model.get_decoder().layers = model.get_decoder().layers[:1]
    return model


def loss_after(model: PreTrainedModel, tokens: Tensor, target: Tensor) -> float:
    """Return the nats of a target after (T,) tokens, by the model's own forward pass."""
    with torch.no_grad():
        logits = model(tokens[None], use_cache=False).logits[0, -1].double()
    return -logits.log_softmax(-1)[target].item()


def ids_of(text: str, tokenizer: Tokenizer) -> Tensor:
    return tokenizer(text, return_tensors="pt").input_ids[0]


def full_losses(base: PreTrainedModel, ids: Tensor) -> list[float]:
    """Return nats by token, each in the first window of 64, by strides of 32, that predicts it."""
    losses = []
    for target in range(1, len(ids)):
        start = next(s for s in range(0, len(ids), CONTEXT // 2) if target < s + CONTEXT)
        losses.append(loss_after(base, ids[start:target], ids[target]))
    return losses


def window_losses(base: PreTrainedModel, ids: Tensor, window: int) -> list[float]:
    """Return nats by token, each after the first tokens and the last `window` alone."""
    losses = []
    for target in range(1, len(ids)):
        seen = ids[:target]
        if target > SINKS + window:
            seen = torch.cat([seen[:SINKS], seen[-window:]])
        losses.append(loss_after(base, seen, ids[target]))
    return losses


def own_losses(model: PreTrainedModel, ids: Tensor) -> list[float]:
    """Return nats by token of one whole pass of a model with a memory."""
    with torch.no_grad():
        log_p = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
    return (-log_p.gather(1, ids[1:, None])[:, 0]).tolist()


def assert_row(row: pd.Series, losses: list[list[float]]) -> None:
    """Compare a row with nats by text and token; errors as of a ratio of two sums over texts."""
    sums, counts = [sum(text) for text in losses], [len(text) for text in losses]
    mean = sum(sums) / sum(counts)
    assert (row["texts"], row["tokens"]) == (len(losses), sum(counts))
    assert row["nats"] == pytest.approx(mean, rel=1e-5)
    assert row["ppl"] == pytest.approx(math.exp(mean), rel=1e-5)
    error = ratio_error(sums, counts)
    assert row["nats_se"] == pytest.approx(error, rel=1e-4)
    assert row["ppl_se"] == pytest.approx(math.exp(mean) * error, rel=1e-4)
    size = sum(len(text.encode()) for text in TEXTS)
    assert sum(sums) / math.log(2) / row["bits_per_byte"] == pytest.approx(size, rel=0.05)


def ratio_error(sums: list[float], counts: list[int]) -> float:
    mean, n = sum(sums) / sum(counts), len(sums)
    squares = sum((x - mean * count) ** 2 for x, count in zip(sums, counts, strict=True))
    return math.sqrt(n / (n - 1) * squares) / sum(counts)


def assert_gain(row: pd.Series, window: list[list[float]], own: list[list[float]]) -> None:
    differences = [sum(a) - sum(b) for a, b in zip(window, own, strict=True)]
    counts = [len(text) for text in own]
    assert row["gain"] == pytest.approx(sum(differences) / sum(counts), rel=1e-4, abs=1e-6)
    assert row["gain_se"] == pytest.approx(ratio_error(differences, counts), rel=1e-3)


def test_base_matches_slow_loops_of_hugging_face(
    base: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    table = infini.evaluate(base, TEXTS, tokenizer=tokenizer, window=12, sinks=SINKS)
    assert list(table.index) == ["window_12", "full"]
    ids = [ids_of(text, tokenizer) for text in TEXTS]
    assert max(map(len, ids)) > CONTEXT > min(map(len, ids))
    full = [full_losses(base, row) for row in ids]
    window = [window_losses(base, row, 12) for row in ids]
    assert_row(table.loc["full"], full)
    assert_row(table.loc["window_12"], window)
    assert_gain(table.loc["full"], window, full)
    assert table["gain"].isna().tolist() == [True, False]
    token = 2 * 16 * 4  # keys and values of 16 numbers, float32
    assert table["state_bytes"].tolist() == [(12 + SINKS - 1) * token, CONTEXT * token]
    assert table["window"].tolist() == [12, pd.NA]


def test_user_policy_in_memory_matches_its_own_forward(
    base: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    untouched = copy.deepcopy(base)
    policy = LongestValues()
    retrofit(base, "window", window=8, sinks=SINKS, retained=4, policy=policy)
    torch.manual_seed(0)
    for parameter in infini_parameters(base).values():
        parameter.data += 0.3 * torch.randn_like(parameter)
    base.train()
    before = copy.deepcopy(base.state_dict())
    trainable = {name: p.requires_grad for name, p in base.named_parameters()}
    table = infini.evaluate(base, TEXTS, tokenizer=tokenizer, sinks=SINKS)
    assert base.training
    assert {name: p.requires_grad for name, p in base.named_parameters()} == trainable
    assert all(torch.equal(before[name], x) for name, x in base.state_dict().items())
    modules = [module for module in base.modules() if hasattr(module, "num_retained")]
    assert all(module.policy is policy for module in modules)
    base.eval()
    ids = [ids_of(text, tokenizer) for text in TEXTS]
    own = [own_losses(base, row) for row in ids]
    model, baseline, full = (table.loc[name] for name in ("model", "baseline", "full"))
    assert_row(model, own)
    longest = max(ids, key=len)
    assert model["state_bytes"] == state_bytes(cache_after(base, longest[None, :-1])).total
    window = int(baseline["window"])
    token = 2 * 16 * 4
    assert window == math.ceil(model["state_bytes"] / token) - SINKS + 1
    assert baseline["state_bytes"] == (window + SINKS - 1) * token >= model["state_bytes"]
    by_window = [window_losses(untouched, row, window) for row in ids]
    assert_row(baseline, by_window)
    assert_gain(model, by_window, own)
    assert_row(full, [full_losses(untouched, row) for row in ids])


@pytest.mark.parametrize(
    "options",
    [
        {"method": "window", "window": 8, "sinks": 2, "retained": 4, "update": "gated_delta"},
        {"method": "parallel", "segment_length": 16, "alpha": 0.5},
        {"method": "parallel", "segment_length": 16, "alpha": 0.5, "segmented": False},
        {"method": "replace", "segment_length": 16},
    ],
)
def test_saved_model_matches_its_own_forward(
    options: dict[str, Any],
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    texts = [text[:150] for text in TEXTS]  # within the base's context
    retrofit(model, **options)
    for parameter in infini_parameters(model).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "mine")
    table = infini.evaluate(tmp_path / "mine", dict(enumerate(texts)))
    assert list(table.index) == ["model", "baseline", "full"]
    losses = [own_losses(model.eval(), ids_of(text, tokenizer)) for text in texts]
    counts = sum(map(len, losses))
    assert table["nats"]["model"] == pytest.approx(sum(map(sum, losses)) / counts, rel=1e-5)
    assert table["state_bytes"]["baseline"] >= min(
        table["state_bytes"]["model"], table["state_bytes"]["full"]
    )


def test_text_within_the_window_has_no_gain(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    retrofit(model, "window", window=30, sinks=4)
    table = infini.evaluate(model, sentence(9, 2), tokenizer=tokenizer)
    assert table["nats"].nunique() == table["state_bytes"].nunique() == 1
    assert table["gain"].tolist() == pytest.approx([0, math.nan, 0], nan_ok=True)
    assert table[["nats_se", "ppl_se", "gain_se"]].isna().all(axis=None)  # one text


def test_baseline_holds_a_text_whole_where_the_model_does(tokenizer: Tokenizer) -> None:
    config = Gemma3TextConfig(**WIDE | IN_TURN | {"vocab_size": 300, "sliding_window": 64})
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config).eval()
    model = infini.retrofit(base, "window", window=40, sinks=4, retained=6, update="none")
    ids = tokenizer(sentence(90, 1)).input_ids
    texts = [tokenizer.decode(ids[start : start + 40]) for start in (0, 20, 40)]
    table = infini.evaluate(model, texts, tokenizer=tokenizer)
    assert table.loc["model", "gain"] == pytest.approx(0, abs=1e-5)
    assert table.loc["baseline", "state_bytes"] == table.loc["model", "state_bytes"]


def test_special_token_begins_a_text(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    text, ids = sentence(9, 2), ids_of(sentence(9, 2), tokenizer)
    tokenizer.bos_token = tokenizer.eos_token
    token = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token[0]} $A", special_tokens=[token]
    )
    row = infini.evaluate(model, text, tokenizer=tokenizer).loc["full"]
    losses = own_losses(model, torch.cat([torch.tensor([token[1]]), ids]))
    assert row["tokens"] == len(ids)
    assert row["nats"] == pytest.approx(sum(losses) / len(ids), rel=1e-5)
    bits = sum(losses) / math.log(2) / len(text.encode())
    assert row["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_tokenizer_comes_from_where_the_base_was(base_folder: Path) -> None:
    base = load_base(str(base_folder))
    given = infini.evaluate(base, TEXTS, tokenizer=load_tokenizer(str(base_folder)))
    for model in (base, base_folder, str(base_folder)):
        pd.testing.assert_frame_equal(infini.evaluate(model, TEXTS), given)
    base.config._name_or_path = ""
    with pytest.raises(InputError, match=r"^tokenizer must be given"):
        infini.evaluate(base, TEXTS)


def test_many_texts_in_padded_groups_equal_single_ones(
    model: PreTrainedModel, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    retrofit(model, "window", window=8, sinks=2, retained=4)
    together = infini.evaluate(model, TEXTS, tokenizer=tokenizer)
    assert sum(len(ids_of(text, tokenizer)) for text in TEXTS) < BATCH_TOKENS
    monkeypatch.setattr("infini.evaluation.evaluate_texts.BATCH_TOKENS", 1)
    monkeypatch.setattr("infini.evaluation.own_texts.TOKENS_PER_CALL", 7)
    pd.testing.assert_frame_equal(
        infini.evaluate(model, TEXTS, tokenizer=tokenizer), together, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("chunk", [5, 16, 100])
def test_chunks_have_the_losses_of_whole_documents(model: PreTrainedModel, chunk: int) -> None:
    pieces = some_pieces([48, 33, 40, 17, 3], 48)
    with sliding_window(model, 8, 2):
        whole = score_documents(model, pieces, 16)
        parts = score_in_chunks(model, pieces, chunk)
    torch.testing.assert_close(parts.nats, whole.nats, rtol=1e-4, atol=1e-5)
    assert torch.equal(parts.scored, whole.scored)


@pytest.mark.parametrize(
    ("texts", "options", "shown"),
    [
        ([], {}, r"^texts must have ≥ 1 text, got 0"),
        (3, {}, r"^texts must be a list of texts, got 3"),
        (b"abc", {}, r"^texts must be a list of texts, got b'abc'"),
        (["union", None], {}, r"^text 2: must be a text, got None"),
        ({"a": "the union", "b": " \n"}, {}, r"^b: empty, must have ≥ 2 tokens"),
        (["union", "a", "union"], {}, r"^text 3: the same text as text 1: give every text once"),
        (["u"], {}, r"^text 1: must have ≥ 2 tokens, got 1"),
        (["union \ud800"], {}, r"^text 1: half a surrogate pair"),
        (TEXTS, {"window": 0}, r"^window must be ≥ 1, got 0"),
        (TEXTS, {"window": 60, "sinks": 5}, r"^window \+ sinks must be ≤ 64, the base's context"),
        (TEXTS, {"sinks": -1}, r"^sinks must be ≥ 0, got -1"),
        (TEXTS, {"base": "x"}, r"^base is only for the folder of a saved model"),
    ],
)
def test_evaluate_rejects_invalid_arguments(
    texts: Any, options: dict[str, Any], shown: str, model: PreTrainedModel
) -> None:
    with pytest.raises(InputError, match=shown):
        infini.evaluate(model, texts, **options)


def test_evaluate_rejects_models_it_cannot_read(
    model: PreTrainedModel, tokenizer: Tokenizer, base_folder: Path
) -> None:
    with pytest.raises(InputError, match=r"^model must be a model of transformers"):
        infini.evaluate(torch.nn.Linear(2, 2), TEXTS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"no model at 'nowhere'"):
        infini.evaluate("nowhere", TEXTS)
    with pytest.raises(InputError, match=r"^base is only for"):
        infini.evaluate(base_folder, TEXTS, base=base_folder)
    small = copy.deepcopy(model)
    small.resize_token_embeddings(270)
    with pytest.raises(InputError, match=r"^tokenizer: tokens must be < 270"):
        infini.evaluate(small, TEXTS, tokenizer=tokenizer)
    retrofit(model, "window", window=8, sinks=2)
    with pytest.raises(InputError, match=r"^window is only for a base without"):
        infini.evaluate(model, TEXTS, window=8)


def test_evaluate_names_the_extra_that_it_needs() -> None:
    code = "import sys; sys.modules['pandas'] = None; import infini; infini.evaluate"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("infini.evaluate needs pandas: pip install 'infini[pipeline]'")
