"""Hashes of the tokens read: parts add up, and tell continued from changed and new tokens."""

import pytest
import torch
from torch import Tensor

from infini.model.token_history import TAIL, TokenHistory


def history(tokens: Tensor, *, pieces: list[int] | None = None) -> TokenHistory:
    """Return the history of tokens without padding, read in pieces."""
    read = TokenHistory.empty(len(tokens))
    for piece in tokens.split(pieces or [tokens.shape[1]], 1):
        read = read.append(piece, torch.ones(piece.shape[:2], dtype=torch.bool))
    return read


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1000, (3, 310), generator=torch.Generator().manual_seed(0))


def test_append_does_not_depend_on_pieces(tokens: Tensor) -> None:
    whole, parts = history(tokens), history(tokens, pieces=[1, 2, 97, 200, 10])
    assert parts.length == whole.length == 310
    assert parts.tensors().keys() == whole.tensors().keys()
    for name, tensor in whole.tensors().items():
        assert torch.equal(parts.tensors()[name], tensor), name


def test_hash_values() -> None:
    """By Python's own integers."""
    read = history(torch.tensor([[3, 0, 5]]), pieces=[2, 1])
    factor = 6364136223846793005
    expected = (4 + 1 * factor + 6 * factor**2) % 2**64
    assert int(read.hash) % 2**64 == expected


def test_is_continued_by(tokens: Tensor) -> None:
    read = history(tokens[:, :300])
    assert read.is_continued_by(tokens)
    assert read.select(torch.tensor([2, 0])).is_continued_by(tokens[[2, 0]])
    swapped = tokens.clone()
    swapped[:, [10, 200]] = tokens[:, [200, 10]]
    for other in (tokens[[0, 2, 1]], tokens[:, :300], tokens[:2], swapped):
        assert not read.is_continued_by(other), "another order, nothing new, another batch"


@pytest.mark.parametrize(
    ("changed", "repeated"),
    [([], 300), ([0], 296), ([299], 256), ([70], 268), ([10, 30], 292), ([*range(310)], 0)],
)
def test_count_repeated_is_by_stretches(tokens: Tensor, changed: list[int], repeated: int) -> None:
    other = tokens.clone()
    other[:, changed] += 1
    assert history(tokens[:, :300]).count_repeated(other)[0] == repeated


def test_count_repeated_finds_the_last_tokens_anywhere(tokens: Tensor) -> None:
    read, new = history(tokens[:, :300]), torch.randint(1000, (3, 70))
    assert read.count_repeated(new) == (0, True)
    assert not read.is_changed_in(new)
    new[:, 9 : 9 + TAIL] = tokens[:, 300 - TAIL : 300]
    assert read.count_repeated(new)[0] == TAIL
    assert read.is_changed_in(new)
    new[0, 20] += 1  # in one sample alone
    assert not read.is_changed_in(new)


@pytest.mark.parametrize("length", [16, 24, 60, 300])
@pytest.mark.parametrize("place", [0, 5, -1])
def test_is_changed_in_a_transcript_of_which_a_token_differs(
    tokens: Tensor, length: int, place: int
) -> None:
    other = tokens[:, : length + 9].clone()
    other[:, place % length] += 1
    assert history(tokens[:, :length]).is_changed_in(other)


@pytest.mark.parametrize(("answer", "question"), [(1, 4), (1, 12), (40, 4), (40, 60)])
def test_prompts_of_one_chat_template_are_new(tokens: Tensor, answer: int, question: int) -> None:
    """Which begin with the same 24 tokens, a system's message."""
    read = history(tokens[:, : 24 + 9 + answer])
    assert not read.is_changed_in(torch.cat([tokens[:, :24], tokens[:, 200 : 204 + question]], 1))


def test_embeddings_are_hashed() -> None:
    embeddings = torch.randn(2, 9, 5)
    one, other = history(embeddings), history(embeddings, pieces=[4, 5])
    assert torch.equal(one.hash, other.hash)
    embeddings[1, 3, 2] += 1
    assert (history(embeddings).hash == one.hash).tolist() == [True, False]


def test_has_mask(tokens: Tensor) -> None:
    mask = torch.ones(3, 310, dtype=torch.bool)
    mask[0, :4] = mask[2, 100] = False
    read = TokenHistory.empty(3)
    for start, end in ((0, 7), (7, 310)):
        read = read.append(tokens[:, start:end], mask[:, start:end])
    assert read.has_mask(mask)
    assert not read.has_mask(torch.ones_like(mask))
    assert not read.has_mask(mask.roll(1, 1))


def test_size_grows_by_two_marks_where_the_text_doubles() -> None:
    sizes = [history(torch.ones(1, n, dtype=torch.int64)).marks.shape[1] for n in (64, 128, 4096)]
    assert sizes == [16, 18, 28]
