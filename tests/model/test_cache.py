"""A cache with a memory stands before any number of prompts, each alone or continuing the last."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

import infini
from architectures import L, text, tiny
from infini.model.architectures import CACHE, cache_of
from infini.model.modules import infini_parameters

NEW = 4
GREEDY: dict[str, Any] = {
    "max_new_tokens": NEW, "do_sample": False,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip
# Lengths: 1 token; as long as the sequence before, or longer; then short ones again
PROMPTS = [9, 1, 9 + 1 + 2 * NEW, 70, 3]


@pytest.fixture(params=["window", "parallel", "replace_teacher", "parallel_full"])
def model(
    request: pytest.FixtureRequest, retrofitted: Callable[[str, str], PreTrainedModel]
) -> PreTrainedModel:
    """Every kind of cache."""
    if request.param != "window":
        return retrofitted("llama", request.param)
    model = infini.retrofit(tiny("llama"), "window", window=7, sinks=3, update="gated_delta")
    for parameter in infini_parameters(model).values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.5)
    return model


def check_prompts(model: PreTrainedModel, cache: Any, prompts: list[Tensor], book: Tensor) -> None:
    """Compare each generation with a forward pass over all of it as one text."""
    read = book
    for prompt in prompts:
        out = model.generate(prompt, **{CACHE: cache}, **GREEDY)
        read = torch.cat([read, out.sequences], 1)
        logits = model(read, use_cache=False).logits[:, -NEW - 1 : -1]
        torch.testing.assert_close(torch.stack(out.logits, 1), logits, rtol=1e-3, atol=1e-4)
        read = read[:, :-1]  # the last token was not read


@pytest.mark.parametrize("book", [5, 2 * L + 7])
@torch.no_grad()
def test_cache_before_any_number_of_prompts(
    model: PreTrainedModel, book: int, tmp_path: Path
) -> None:
    prompts, read = [text(2, n) for n in PROMPTS], text(2, book)
    check_prompts(model, cache_of(model(read)), prompts, read)
    infini.save_memory(cache_of(model(read)), tmp_path / "book")
    check_prompts(model, infini.load_memory(tmp_path / "book", model), prompts, read)


@torch.no_grad()
def test_forward_in_chunks_equals_forward(model: PreTrainedModel) -> None:
    pieces = [text(2, n) for n in (40, *PROMPTS)]
    whole, state, out = model(torch.cat(pieces, 1)).logits, None, []
    for piece in pieces:
        done = model(piece, **{CACHE: state})
        state = cache_of(done)
        out.append(done.logits)
    torch.testing.assert_close(torch.cat(out, 1), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_generate_continues_a_sequence_without_reading_it_twice(model: PreTrainedModel) -> None:
    book, prompt, more = text(2, 40), text(2, 9), text(2, 6)
    cache = cache_of(model(book))
    generated = model.generate(prompt, **{CACHE: cache}, **GREEDY).sequences
    check_prompts(model, cache, [torch.cat([generated, more], 1)], book)


@torch.no_grad()
def test_padded_prompts_after_a_padded_text(model: PreTrainedModel) -> None:
    def padded(lengths: list[int]) -> tuple[list[Tensor], Tensor, Tensor]:
        texts = [text(1, n) for n in lengths]
        rows = torch.cat([F.pad(t, (max(lengths) - t.shape[1], 0)) for t in texts])
        return texts, rows, (rows != 0).long()

    read, rows, mask = padded([40, 33])
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # full attention needs them, as a base does
    state = cache_of(model(rows, attention_mask=mask, position_ids=positions))
    for lengths in ([6, 9], [3, 2]):
        prompts, rows, mask = padded(lengths)
        out = model.generate(rows, **{CACHE: state, "attention_mask": mask}, **GREEDY)
        for row, prompt in enumerate(prompts):
            whole = torch.cat([read[row], prompt, out.sequences[row : row + 1, -NEW:]], 1)
            logits = model(whole, use_cache=False).logits[0, -NEW - 1 : -1]
            got = torch.stack(out.logits, 1)[row]
            torch.testing.assert_close(got, logits, rtol=1e-3, atol=1e-4)
            read[row] = whole[:, :-1]


def test_cache_of_a_pass_with_gradients_is_copied_without_them(model: PreTrainedModel) -> None:
    for length in (5, 40, 2 * L):
        cache, more = cache_of(model(text(2, length))), text(2, 9)
        copied = copy.deepcopy(cache)
        expected = model(more, **{CACHE: copied}).logits
        logits = model(more, **{CACHE: cache}).logits  # the original has its graph still
        assert torch.equal(logits, expected)
        logits.sum().backward()


def test_detach_cuts_the_graph_for_truncated_backpropagation(model: PreTrainedModel) -> None:
    embeddings = [model.get_input_embeddings()(text(2, n)).detach() for n in (40, 30)]
    for x in embeddings:
        x.requires_grad_()
    gradients = []
    for cut in (False, True):
        cache = cache_of(model(inputs_embeds=embeddings[0]))
        if cut:
            assert cache.detach_() is cache
        out = model(inputs_embeds=embeddings[1], **{CACHE: cache}).logits
        gradients.append(torch.autograd.grad(out.sum(), embeddings, allow_unused=True))
    assert gradients[0][0].abs().max() > 0
    assert gradients[1][0] is None
    assert torch.equal(gradients[0][1], gradients[1][1])


@torch.no_grad()
def test_seen_tokens_counts_what_was_read_without_padding(
    model: PreTrainedModel, tmp_path: Path
) -> None:
    tokens = text(2, 40)
    mask = torch.ones_like(tokens)
    mask[0, :3] = mask[1, :7] = 0
    cache = cache_of(model(tokens, attention_mask=mask))
    assert (cache.seen_tokens, cache.get_seq_length()) == (37, 40)
    assert cache.token_counts.tolist() == [37, 33]
    model.generate(text(2, 9), **{CACHE: cache}, **GREEDY)
    assert cache.seen_tokens == 37 + 9 + NEW - 1
    infini.save_memory(cache, tmp_path / "memory")
    assert infini.load_memory(tmp_path / "memory").seen_tokens == cache.seen_tokens
    cache.reorder_cache(torch.tensor([1, 1]))
    assert cache.seen_tokens == 33 + 9 + NEW - 1
    cache.reset()
    assert cache.seen_tokens == 0


@torch.no_grad()
def test_embeddings_as_a_prompt_are_new_tokens(model: PreTrainedModel) -> None:
    read, prompt = text(2, 40), text(2, 9)
    expected = model.generate(prompt, **{CACHE: cache_of(model(read))}, **GREEDY)
    embeddings = model.get_input_embeddings()(prompt)
    out = model.generate(inputs_embeds=embeddings, **{CACHE: cache_of(model(read))}, **GREEDY)
    assert torch.equal(out.sequences, expected.sequences[:, 9:])
