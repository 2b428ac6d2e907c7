"""Segmented run: whole documents by segments, chunks, gradients, a pass that ends early."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

import infini
from architectures import L, text, tiny
from infini.memory.packing import Packing
from infini.model.architectures import decoder_layers
from infini.model.segmented.run import (
    SegmentedRun,
    UsesRun,
    detach_states,
    run_segments,
    stop_after,
    use_run,
)

Retrofitted = Callable[[str, str], PreTrainedModel]


@torch.no_grad()
def test_run_segments_in_chunks_of_whole_segments(model: PreTrainedModel) -> None:
    tokens = text(2, 3 * L)
    infini.retrofit(model, layers=[0, 1], segment_length=L, alpha=0.7)
    whole, _ = run_segments(model, tokens, L)
    states, parts = None, []
    for chunk in tokens.split([2 * L, L], 1):
        hidden, states = run_segments(model, chunk, L, states)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    _, states = run_segments(model, tokens[:, :5], L)
    with pytest.raises(ValueError, match="must be a multiple of 16 tokens"):
        run_segments(model, tokens[:, 5:], L, states)


def test_gradient_crosses_segments_through_the_memory(retrofitted: Retrofitted) -> None:
    model, tokens = retrofitted("gpt_neox", "parallel"), text(2, 3 * L)
    embeddings = model.get_input_embeddings().weight.requires_grad_()
    tokens[:, 0] = 0  # occurs nowhere else
    model(tokens).logits[:, 2 * L :].square().sum().backward()
    assert embeddings.grad[0].abs().sum() > 0


def test_detach_states_keeps_values_without_graph(retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", "parallel")
    _, states = run_segments(model, text(2, 2 * L), L)
    assert states[2].matrix.requires_grad
    detached = detach_states(states)
    assert detached.keys() == states.keys() == {0, 2}
    for layer, state in states.items():
        for tensor, own in zip(detached[layer], state, strict=True):
            assert torch.equal(tensor, own)
            assert not tensor.requires_grad


@torch.no_grad()
def test_stop_after_records_the_layer_and_ends_the_pass(model: PreTrainedModel) -> None:
    first, second = decoder_layers(model)
    tokens = text(2, L)
    hidden = model(tokens, output_hidden_states=True).hidden_states
    ran: list[object] = []
    hooks = len(first._forward_hooks)
    handle = second.register_forward_hook(lambda *_: ran.append(None))
    for _ in range(2):
        with stop_after(first) as recorded:
            model(tokens)
        ((before, after),) = recorded
        assert torch.equal(before, hidden[0])
        assert torch.equal(after, hidden[1])
    assert not ran
    with pytest.raises(ZeroDivisionError), stop_after(first):
        raise ZeroDivisionError
    assert len(first._forward_hooks) == hooks
    model(tokens)
    assert len(ran) == 1
    handle.remove()


@torch.no_grad()
def test_use_run_sets_all_modules_for_the_block() -> None:
    model = infini.retrofit(tiny("llama"), "replace", [0, 2], L)
    modules = [module for module in model.modules() if isinstance(module, UsesRun)]
    assert len(modules) == 3  # the decoder and two layers
    run = SegmentedRun(Packing.from_mask(1, 2 * L, None), 2 * L, L)
    with use_run(model.get_decoder(), run):
        assert all(module.run is run for module in modules)
        rows = text(1, 2 * L).view(2, L)
        model.get_decoder()(rows, use_cache=False)
    assert sorted(run.states) == [0, 2]
    with pytest.raises(ZeroDivisionError), use_run(model.get_decoder(), run):
        raise ZeroDivisionError
    assert all(module.run is None for module in modules)
