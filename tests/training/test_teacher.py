"""Teacher log-probabilities: recorded, written and read."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from infini.errors import InputError
from infini.evaluation.config import FullProtocol
from infini.training.teacher import NUM_LIKELIEST, Teacher, record_log_probs
from toy import some_pieces

L = 24


def test_record_log_probs_of_the_likeliest_tokens(model: PreTrainedModel) -> None:
    text = some_pieces([L, L, L], L)
    teacher = record_log_probs(model, text, FullProtocol(context=L, stride=L))
    with torch.no_grad():
        own = model(text.tokens).logits.log_softmax(-1)
    expected, ids = own.topk(NUM_LIKELIEST, -1)
    torch.testing.assert_close(teacher.log_probs.float(), expected, rtol=1e-2, atol=1e-2)
    assert (teacher.ids == ids).float().mean() > 0.99, "ties apart"


def test_record_log_probs_beyond_the_context(model: PreTrainedModel) -> None:
    text = some_pieces([L], L)
    teacher = record_log_probs(model, text, FullProtocol(context=16, stride=8))
    with torch.no_grad():
        first = model(text.tokens[:, :16]).logits.log_softmax(-1).topk(NUM_LIKELIEST, -1).values
        second = model(text.tokens[:, 8:]).logits.log_softmax(-1).topk(NUM_LIKELIEST, -1).values
    expected = torch.cat([first[:, :15], second[:, 7:]], 1)
    torch.testing.assert_close(teacher.log_probs.float(), expected, rtol=1e-2, atol=1e-2)


def test_teacher_save_and_load(model: PreTrainedModel, tmp_path: Path) -> None:
    teacher = record_log_probs(model, some_pieces([L, L, L], L), FullProtocol(context=L, stride=L))
    teacher.save(tmp_path / "train.safetensors")
    again = Teacher.load(tmp_path / "train.safetensors", 2)
    assert torch.equal(again.ids, teacher.ids[:2])
    assert torch.equal(again.log_probs, teacher.log_probs[:2])
    with pytest.raises(InputError, match="must hold ≥ 4 documents, got 3"):
        Teacher.load(tmp_path / "train.safetensors", 4)
    Teacher(teacher.log_probs[..., 0], teacher.ids).save(tmp_path / "train.safetensors")
    with pytest.raises(InputError, match=r"train.safetensors: shapes differ"):
        Teacher.load(tmp_path / "train.safetensors", 2)
