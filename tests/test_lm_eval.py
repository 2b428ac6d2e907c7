"""lm-evaluation-harness scores a loaded model as protocol documents does."""

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, PreTrainedModel

import infini
from infini.corpus.pieces import Pieces
from infini.evaluation.perplexity import score_documents
from infini.model.base import load_base
from toy import sentence

L, LONGEST = 16, 1024


@pytest.fixture
def loaded(model: PreTrainedModel, base_folder: Path, tmp_path: Path) -> PreTrainedModel:
    """Return a saved and loaded model whose memory changes the output."""
    torch.manual_seed(1)
    infini.retrofit(model, "parallel", [0, 1], L, alpha=4.0)
    model.save_pretrained(tmp_path / "model")
    return infini.load(tmp_path / "model", load_base(str(base_folder)))


def harness(model: PreTrainedModel, base_folder: Path, batch_size: int = 3) -> HFLM:
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=LONGEST, batch_size=batch_size)


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Return texts, and write the task `local_text` about them to the folder `tasks`."""
    texts = [sentence(length, seed) for seed, length in enumerate((60, 7, 25, 41))]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    task = {
        "task": "local_text",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "texts.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        "metadata": {"version": 1},
    }
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/local_text.yaml").write_text(yaml.safe_dump(task))
    return texts


def results(lm: HFLM, folder: Path) -> dict[str, Any]:
    """Return the results of the task in `folder`."""
    evaluated = lm_eval.simple_evaluate(
        lm,
        tasks=["local_text"],
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        bootstrap_iters=0,
    )
    assert evaluated is not None
    return evaluated["results"]["local_text"]


def test_rolling_perplexity_equals_protocol_documents(
    loaded: PreTrainedModel, base_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    lm = harness(loaded, base_folder)
    theirs = results(lm, tmp_path)

    # The harness puts one token in front, which is not scored: our pieces begin with it
    ids = [torch.tensor([lm.prefix_token_id, *lm.tok_encode(text)]) for text in texts]
    tokens = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    mask = torch.arange(tokens.shape[1]) < torch.tensor([len(i) for i in ids])[:, None]
    assert 2 * L < tokens.shape[1] <= LONGEST
    counts = torch.tensor([len(text.encode()) for text in texts])
    pieces = Pieces(tokens, mask, counts, torch.arange(len(texts)))
    score = score_documents(loaded, pieces, L)
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    assert theirs["word_perplexity,none"] == pytest.approx(math.exp(score.total / words), rel=1e-3)
    assert theirs["bits_per_byte,none"] == pytest.approx(score.bits_per_byte, rel=1e-3)
    off = score_documents(loaded, pieces, L, memory="off")
    assert abs(off.total / score.total - 1) > 2e-3  # the memory changes the score


@pytest.mark.usefixtures("texts")
def test_command_line_scores_a_saved_model(
    loaded: PreTrainedModel, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (
        f"run --model hf --model_args pretrained={tmp_path / 'model'},max_length={LONGEST} --tasks "
        f"local_text --include_path {tmp_path / 'tasks'} --device cpu --batch_size 3 "
        f"--output_path {tmp_path / 'results'}"
    )
    monkeypatch.setattr(sys, "argv", ["lm_eval", *words.split()])
    cli_evaluate()
    (file,) = tmp_path.glob("results/*/results_*.json")
    theirs = json.loads(file.read_text())["results"]["local_text"]
    ours = results(harness(loaded, base_folder), tmp_path)
    for name in ("word_perplexity,none", "bits_per_byte,none"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-6)


def test_requests_do_not_depend_on_order_or_batch(
    loaded: PreTrainedModel, base_folder: Path
) -> None:
    pairs = [(sentence(n, n), " peace of the union") for n in (40, 5, 23, 12)]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    together = harness(loaded, base_folder).loglikelihood(requests)
    again = harness(loaded, base_folder).loglikelihood(requests[::-1])[::-1]
    alone = [harness(loaded, base_folder, 1).loglikelihood([one])[0] for one in requests]
    for other in (again, alone):
        assert [x for x, _ in other] == pytest.approx([x for x, _ in together], abs=1e-4)
    assert len({round(x, 5) for x, _ in together}) == len(pairs)
