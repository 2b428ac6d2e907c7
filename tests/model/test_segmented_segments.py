"""Documents by segments: whole chunks of them, the gradient across, a pass that ends early."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

import infini
from architectures import L, text
from infini.model.architectures import decoder_layers
from infini.model.segmented.run import detach_states, run_segments, stop_after

Retrofitted = Callable[[str, str], PreTrainedModel]


@torch.no_grad()
def test_streaming_by_segments_needs_whole_segments(model: PreTrainedModel) -> None:
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


def test_a_later_segments_loss_reaches_what_an_earlier_one_wrote(retrofitted: Retrofitted) -> None:
    model, tokens = retrofitted("gpt_neox", "beside"), text(2, 3 * L)
    embeddings = model.get_input_embeddings().weight.requires_grad_()
    tokens[:, 0] = 0  # occurs nowhere else
    model(tokens).logits[:, 2 * L :].square().sum().backward()
    assert embeddings.grad[0].abs().sum() > 0


def test_a_detached_memory_is_the_same_and_has_no_graph(retrofitted: Retrofitted) -> None:
    model = retrofitted("llama", "beside")
    _, states = run_segments(model, text(2, 2 * L), L)
    assert states[2].matrix.requires_grad
    apart = detach_states(states)
    assert apart.keys() == states.keys() == {0, 2}
    for layer, state in states.items():
        for tensor, own in zip(apart[layer], state, strict=True):
            assert torch.equal(tensor, own)
            assert not tensor.requires_grad


@torch.no_grad()
def test_a_pass_ends_once_the_layer_has_run(model: PreTrainedModel) -> None:
    first, second = decoder_layers(model)
    tokens = text(2, L)
    hidden = model(tokens, output_hidden_states=True).hidden_states
    ran: list[object] = []
    hooks = len(first._forward_hooks)
    handle = second.register_forward_hook(lambda *_: ran.append(None))
    for _ in range(2):
        with stop_after(first) as seen:
            model(tokens)
        ((before, after),) = seen
        assert torch.equal(before, hidden[0])
        assert torch.equal(after, hidden[1])
    assert not ran
    with pytest.raises(ZeroDivisionError), stop_after(first):
        raise ZeroDivisionError
    assert len(first._forward_hooks) == hooks
    model(tokens)
    assert len(ran) == 1
    handle.remove()
