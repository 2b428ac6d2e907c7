"""One memory, many questions: each alone, or with all that was said since the first."""

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
from infini.model.sequence_cache import SequenceCache

NEW = 4
GREEDY: dict[str, Any] = {
    "max_new_tokens": NEW, "do_sample": False,
    "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip
# Of 1 token; as long as all that was said before, or longer; then short ones again
QUESTIONS = [9, 1, 9 + 1 + 2 * NEW, 70, 3]


@pytest.fixture(params=["window", "beside", "taught", "beside_full"])
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


def asked(model: PreTrainedModel, state: Any, questions: list[Tensor], book: Tensor) -> None:
    """Each answer is what a model predicts that reads all of it as one text."""
    read = book
    for question in questions:
        out = model.generate(question, **{CACHE: state}, **GREEDY)
        read = torch.cat([read, out.sequences], 1)
        logits = model(read, use_cache=False).logits[:, -NEW - 1 : -1]
        torch.testing.assert_close(torch.stack(out.logits, 1), logits, rtol=1e-3, atol=1e-4)
        read = read[:, :-1]  # nothing has read the last


@pytest.mark.parametrize("book", [5, 2 * L + 7])
@torch.no_grad()
def test_any_number_of_questions_of_any_length(
    model: PreTrainedModel, book: int, tmp_path: Path
) -> None:
    questions, read = [text(2, n) for n in QUESTIONS], text(2, book)
    asked(model, cache_of(model(read)), questions, read)
    infini.save_memory(cache_of(model(read)), tmp_path / "book")
    asked(model, infini.load_memory(tmp_path / "book", model), questions, read)


@torch.no_grad()
def test_forward_passes_ask_as_often(model: PreTrainedModel) -> None:
    pieces = [text(2, n) for n in (40, *QUESTIONS)]
    whole, state, out = model(torch.cat(pieces, 1)).logits, None, []
    for piece in pieces:
        done = model(piece, **{CACHE: state})
        state = cache_of(done)
        out.append(done.logits)
    torch.testing.assert_close(torch.cat(out, 1), whole, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_sequence_that_goes_on_is_not_read_twice(model: PreTrainedModel) -> None:
    book, question, more = text(2, 40), text(2, 9), text(2, 6)
    state = cache_of(model(book))
    said = model.generate(question, **{CACHE: state}, **GREEDY).sequences
    asked(model, state, [torch.cat([said, more], 1)], book)


@torch.no_grad()
def test_padded_questions_after_a_padded_book(model: PreTrainedModel) -> None:
    def padded(lengths: list[int]) -> tuple[list[Tensor], Tensor, Tensor]:
        texts = [text(1, n) for n in lengths]
        rows = torch.cat([F.pad(t, (max(lengths) - t.shape[1], 0)) for t in texts])
        return texts, rows, (rows != 0).long()

    read, rows, mask = padded([40, 33])
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # full attention needs them, as a base does
    state = cache_of(model(rows, attention_mask=mask, position_ids=positions))
    for lengths in ([6, 9], [3, 2]):
        questions, rows, mask = padded(lengths)
        out = model.generate(rows, **{CACHE: state, "attention_mask": mask}, **GREEDY)
        for row, question in enumerate(questions):
            whole = torch.cat([read[row], question, out.sequences[row : row + 1, -NEW:]], 1)
            logits = model(whole, use_cache=False).logits[0, -NEW - 1 : -1]
            got = torch.stack(out.logits, 1)[row]
            torch.testing.assert_close(got, logits, rtol=1e-3, atol=1e-4)
            read[row] = whole[:, :-1]


def test_a_digest_is_of_the_tokens_and_their_places_however_they_came() -> None:
    tokens = torch.randint(1000, (3, 300))
    whole, parts = SequenceCache(""), SequenceCache("")
    whole.follow(tokens)
    for piece in tokens.split([1, 2, 97, 200], 1):
        parts.follow(piece)
    assert torch.equal(whole.digest, parts.digest)
    longer = torch.cat([tokens, tokens[:, :2]], 1)
    for cache in (whole, parts):
        assert not cache.begin(longer)
        assert cache.get_seq_length() == 300
    whole.select(torch.tensor([2, 0]))
    assert not whole.begin(longer[[2, 0]])
    for other in (longer[[0, 2]], tokens[[2, 0]], longer):
        whole.seen, whole.digest = 300, parts.digest[[2, 0]]
        assert whole.begin(other), "another order, nothing new, another batch"
        assert whole.get_seq_length() == 0
    swapped = longer.clone()
    swapped[:, [10, 200]] = longer[:, [200, 10]]
    assert parts.begin(swapped)
