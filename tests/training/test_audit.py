"""The log's mistakes, as audits put them into a training."""

import pytest
import torch
from transformers import PreTrainedModel

from infini.evaluation.layer_error import LayerData
from infini.evaluation.losses import cross_entropy, next_token
from infini.evaluation.perplexity import double_shift
from infini.model.architectures import output_head
from infini.model.retrofit import retrofit
from infini.model.segmented.segments import run_segments
from infini.training.audit import LabelsShiftedTwice, MemoryCarried, padding_counted
from infini.training.long_context import Batch, Documents
from toy import long_recipe, some_pieces

L = 16


def test_labels_shifted_twice_are_the_logs_loop(model: PreTrainedModel) -> None:
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=0.0)  # no memory to differ in
    text = some_pieces([64, 50], 64)
    shifted = LabelsShiftedTwice(model, text, L, long_recipe())
    losses = list(shifted.losses(Batch(torch.arange(2))))
    expected = double_shift(model, text, L)
    assert sum(loss.total.item() for loss in losses) == pytest.approx(expected.total, rel=1e-5)
    assert sum(loss.items for loss in losses) == expected.tokens
    assert shifted.validate(text) == pytest.approx(expected.mean)


def test_carried_memory_is_the_document_befores(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    retrofit(model, "parallel", layers=[0], segment_length=L, alpha=1.0)
    text = some_pieces([64, 64], 64)
    documents = MemoryCarried(model, text, L, long_recipe())
    first, second = documents.batches(seed=0)
    (opening,) = documents.losses(first)
    (carried,) = documents.losses(second)
    plain = Documents(model, text, L, long_recipe())
    torch.testing.assert_close(opening.total, next(plain.losses(first)).total)
    order = torch.cat([first.rows, second.rows])
    with torch.no_grad():
        hidden, _ = run_segments(model, text.tokens[order].flatten()[None], L)
        targets = next_token(text.tokens[second.rows], text.mask[second.rows])
        expected = cross_entropy(hidden[:, 64:], output_head(model), targets).sum()
    torch.testing.assert_close(carried.total, expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(carried.total, next(plain.losses(second)).total, rtol=1e-5)


def test_padding_counts_as_text() -> None:
    data = LayerData(torch.zeros(2, 4, 3), torch.ones(2, 4, 3), torch.arange(4) < torch.tensor(2))
    assert padding_counted(data).mask.all()
    assert not data.mask.all()
