"""Pretraining of the embedded base: stage, sequences, optimizer."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infini.training.muon import Muon, orthogonalise
from infini.training.pretraining import cosine_schedule, sequences
from stages import pretrain_base
from toy import read_params, write_params


@pytest.fixture
def tiny_pretraining(project: Path) -> None:
    content = read_params()
    content["pretrain"] |= {
        "vocab_size": 300,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "warmup": 2,
        "batch_tokens": 64,
        "phases": [
            {"corpora": ["text"], "context": 16, "epochs": 2},
            {"corpora": ["text"], "context": 32, "epochs": 1},
        ],
    }
    write_params(content)


def test_stopped_pretraining_does_not_go_on_with_another_text(
    tiny_pretraining: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []

    def stop(*arguments: object) -> None:
        keys.append(arguments[-1].path.name)
        raise InterruptedError

    monkeypatch.setattr(pretrain_base, "pretrain", stop)
    for text in ("a text", "a text", "another text"):
        Path("text/0.txt").write_text(text)
        with pytest.raises(InterruptedError):
            pretrain_base.main()
    assert keys[0] == keys[1] != keys[2]


def test_pretrain_base_stage_writes_a_trained_base(tiny_pretraining: None) -> None:
    pretrain_base.main()
    curve = pd.read_csv("data/base/curve.csv")
    assert curve["epoch"].tolist() == [1, 2, 3]
    assert curve["val_loss"].iloc[-1] < curve["val_loss"].iloc[0]
    assert not Path(".checkpoints").exists()
    model = AutoModelForCausalLM.from_pretrained("data/base")
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    assert model.config.max_position_embeddings == 32
    assert model.config.eos_token_id == tokenizer.eos_token_id
    text = "any text — even “this” – survives its tokens"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_sequences_cover_the_stream_once_per_epoch() -> None:
    stream = torch.arange(1000)
    first, second = sequences(stream, 16, seed=1), sequences(stream, 16, seed=2)
    for rows in (first, second):
        assert (rows.diff() == 1).all()
        assert len(rows.flatten().unique()) == rows.numel() > 1000 - 32
    assert first.min() != second.min()


def test_orthogonalise_preserves_singular_vectors() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(24, 8) @ torch.diag(torch.logspace(0, -1.5, 8))
    got = orthogonalise(matrix)
    values = torch.linalg.svdvals(got)
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    aligned = u.T @ got @ v.T  # diagonal if the singular vectors are the same
    assert (aligned - torch.diag(aligned.diag())).abs().max() < 1e-3


def test_muon_step_size_is_independent_of_the_gradients_scale() -> None:
    moves = []
    for scale in (1e-3, 1e3):
        weight = torch.nn.Parameter(torch.zeros(8, 8))
        weight.grad = scale * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=0.1, weight_decay=0.0).step()
        moves.append(weight.detach())
    torch.testing.assert_close(moves[0], moves[1], rtol=1e-3, atol=1e-5)
    assert 0.01 < moves[0].square().mean().sqrt() < 0.03  # about 0.2 × the rate, as AdamW's


def test_cosine_schedule() -> None:
    rates = [cosine_schedule(step, total=100, warmup=10) for step in range(101)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == 0.02
