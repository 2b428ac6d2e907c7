"""Segmented run: whole documents by segments, chunks, gradients, a pass that ends early."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import infini
from architectures import L, text, tiny
from infini.memory.packing import Packing
from infini.model.architectures import CACHE, cache_of, decoder_layers
from infini.model.segmented.run import (
    SegmentedRun,
    current_run,
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
def test_use_run_holds_for_the_block_in_its_thread() -> None:
    run = SegmentedRun(Packing.from_mask(1, 2 * L, None), 2 * L, L)
    with use_run(run), ThreadPoolExecutor(1) as other:
        assert current_run() is run
        assert other.submit(current_run).result() is None
        with use_run(None):
            assert current_run() is None
        assert current_run() is run
    with pytest.raises(ZeroDivisionError), use_run(run):
        raise ZeroDivisionError
    assert current_run() is None


@pytest.mark.parametrize(
    "kind", ["parallel", "replace_teacher", "parallel_full", "replace_teacher_full", "window"]
)
def test_threads_that_call_one_model_get_the_values_of_calls_in_turn(
    kind: str, retrofitted: Retrofitted
) -> None:
    if kind == "window":
        model = infini.retrofit(tiny("llama"), "window", window=8, sinks=2, retained=4)
    else:
        model = retrofitted("llama", kind)
    texts = [text(2, 40), text(2, 40).flip(1)]

    def read(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            first = model(tokens[:, :37])
            rest = model(tokens[:, 37:], **{CACHE: cache_of(first)})
            return torch.cat([first.logits, rest.logits], 1)

    expected = [read(tokens) for tokens in texts]
    both = Barrier(2, timeout=30)

    def enter_together(*_: object) -> None:
        both.wait()

    for layer in decoder_layers(model):
        layer.register_forward_pre_hook(enter_together)
    with ThreadPoolExecutor(2) as pool:
        for logits, alone in zip(pool.map(read, texts), expected, strict=True):
            assert torch.equal(logits, alone)


@pytest.mark.parametrize("kind", ["parallel", "replace_teacher"])
def test_backward_pass_in_another_thread_recomputes_with_the_memory(
    kind: str, retrofitted: Retrofitted
) -> None:
    model, tokens = retrofitted("llama", kind).train(), text(2, 3 * L)
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(model(tokens, labels=tokens, use_cache=False).loss, trained)
    model.gradient_checkpointing_enable()
    loss = model(tokens, labels=tokens).loss
    with ThreadPoolExecutor(1) as other:
        gradients = other.submit(torch.autograd.grad, loss, trained).result()
    torch.testing.assert_close(gradients, plain)


@torch.no_grad()
def test_a_model_called_within_another_models_pass_has_its_own_run(
    retrofitted: Retrofitted,
) -> None:
    outer, inner = retrofitted("llama", "parallel"), retrofitted("gpt_neox", "replace_teacher")
    tokens, other = text(2, 40), text(1, 25)
    expected = outer(tokens).logits, inner(other).logits
    seen: list[Tensor] = []
    decoder_layers(outer)[1].register_forward_pre_hook(lambda *_: seen.append(inner(other).logits))
    assert torch.equal(outer(tokens).logits, expected[0])
    assert seen
    assert all(torch.equal(logits, expected[1]) for logits in seen)
