"""A cache with a memory stands before any number of prompts, each alone or continuing the last."""

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
