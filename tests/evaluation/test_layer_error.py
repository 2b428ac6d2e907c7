"""Mean squared error of a layer against the one that it replaces."""

import pytest
import torch
from transformers import PreTrainedModel

from infini.evaluation.layer_error import mean_squared_error, record_layer, squared_error
from infini.model.architectures import decoder_layers
from infini.model.modules import segmented_layers
from infini.model.retrofit import retrofit
from toy import some_pieces

L = 16


def test_mean_squared_error_ignores_padding_and_resets_the_memory(model: PreTrainedModel) -> None:
    text = some_pieces([16, 9], L)
    teacher = record_layer(model, 0, text)
    retrofit(model, "replace", local="linear", init="random", segment_length=L)
    layer = segmented_layers(model)[0]
    both = mean_squared_error(layer, teacher)
    total = 0.0
    for i, length in enumerate((16, 9)):  # each by itself, without its padding
        out = layer(teacher.inputs[i : i + 1, :length])
        total += (out - teacher.outputs[i : i + 1, :length]).square().mean().item() * length
    assert both == pytest.approx(total / 25, rel=1e-5)
    teacher.inputs[1, 9:] = 1e3
    teacher.outputs[1, 9:] = -1e3
    assert mean_squared_error(layer, teacher) == pytest.approx(both, rel=1e-6)
    assert squared_error(layer, teacher, torch.tensor([0, 1])).requires_grad


def test_record_layer_returns_the_bases_inputs_and_outputs(model: PreTrainedModel) -> None:
    text = some_pieces([16, 16], L)
    hidden = model(text.tokens, output_hidden_states=True).hidden_states
    teacher = record_layer(model, 0, text)
    torch.testing.assert_close(teacher.inputs, hidden[0])
    torch.testing.assert_close(teacher.outputs, hidden[1])
    assert len(decoder_layers(model)) == 2
