"""Distillation reads no memory: a sample is one segment."""

import pytest
import torch
from torch import Tensor

import infini
from architectures import L, tiny
from infini.choices import MemoryMode
from infini.evaluation.layer_error import LayerData, squared_error
from infini.model.forward import memory_mode
from infini.model.modules import infini_parameters, segmented_layers


@pytest.mark.parametrize("local", ["linear", "softmax"])
def test_gradients_without_memory_are_those_with_it_bit_for_bit(local: str) -> None:
    model = infini.retrofit(
        tiny("llama"),
        "replace",
        layers=[0],
        init="random",
        local=local,
        position="none",
        segment_length=L,
    )
    layer, parameters = segmented_layers(model)[0], infini_parameters(model)
    data = LayerData(torch.randn(3, L, 16), torch.randn(3, L, 16), torch.arange(L) < L - 2)
    data.mask = data.mask.expand(3, L)
    results: list[tuple[Tensor, dict[str, Tensor]]] = []
    modes: list[MemoryMode] = ["own", "off"]
    for mode in modes:
        model.zero_grad()
        with memory_mode(model, mode):
            loss = squared_error(layer, data, torch.tensor([2, 0]))
            loss.backward()
        gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        results.append((loss.detach(), gradients))
    (own, with_memory), (off, without) = results
    assert torch.equal(own, off)
    gates = [gradient for name, gradient in with_memory.items() if name not in without]
    assert len(gates) == 1
    assert not gates[0].any()  # an empty memory is not read
    assert all(torch.equal(with_memory[name], gradient) for name, gradient in without.items())
    assert any(gradient.any() for gradient in without.values())
