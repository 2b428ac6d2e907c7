"""Hashes of the tokens read: parts add up, and tell continued from changed and new tokens."""

import pytest
import torch
from torch import Tensor

from infini.model.token_history import HELD, TokenHistory


def history(
    tokens: Tensor, *, pieces: list[int] | None = None, mask: Tensor | None = None
) -> TokenHistory:
    """Return the history of tokens, read in pieces."""
    mask = every(tokens) if mask is None else mask
    read, sizes = TokenHistory.empty(len(tokens)), pieces or [tokens.shape[1]]
    for piece, own in zip(tokens.split(sizes, 1), mask.split(sizes, 1), strict=True):
        read = read.append(piece, own)
    return read


def every(tokens: Tensor) -> Tensor:
    """Return the mask without padding."""
    return torch.ones(tokens.shape[:2], dtype=torch.bool)


def is_changed(read: TokenHistory, prompt: Tensor) -> bool:
    return read.is_changed_in(prompt, every(prompt))


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows as a batch padded on the left, and its mask."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width).long(), torch.zeros(len(rows), width).bool()
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, True
    return ids, mask


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1000, (3, 310), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("padded", [False, True])
def test_append_does_not_depend_on_pieces(tokens: Tensor, padded: bool) -> None:
    mask = every(tokens)
    if padded:
        mask[0, :60] = mask[1, 40:250] = mask[2, ::2] = False
    whole, parts = (
        history(tokens, mask=mask),
        history(tokens, pieces=[1, 2, 97, 200, 10], mask=mask),
    )
    assert parts.length == whole.length == 310
    assert parts.tensors().keys() == whole.tensors().keys()
    for name, tensor in whole.tensors().items():
        assert torch.equal(parts.tensors()[name], tensor), name
    for sample in range(3):  # as if there were no padding
        alone = history(tokens[sample, mask[sample]][None])
        assert int(alone.counts) == alone.length == int(whole.counts[sample])
        assert torch.equal(alone.marks[0], whole.marks[sample, : alone.marks.shape[1]])
        for name in ("hash", "head", "tail"):
            assert torch.equal(getattr(alone, name)[0], getattr(whole, name)[sample]), name


def test_hash_values() -> None:
    """By Python's own integers."""
    read = history(torch.tensor([[3, 0, 5]]), pieces=[2, 1])
    factor = 6364136223846793005
    expected = (4 + 1 * factor + 6 * factor**2) % 2**64
    assert int(read.hash) % 2**64 == expected


def test_is_continued_by(tokens: Tensor) -> None:
    read, mask = history(tokens[:, :300]), every(tokens)
    assert read.is_continued_by(tokens, mask)
    assert read.select(torch.tensor([2, 0])).is_continued_by(tokens[[2, 0]], mask[:2])
    swapped = tokens.clone()
    swapped[:, [10, 200]] = tokens[:, [200, 10]]
    for other in (tokens[[0, 2, 1]], tokens[:, :300], tokens[:2], swapped):
        assert not read.is_continued_by(other, every(other)), "another order or batch, nothing new"
    mask[1, 3] = False
    assert not read.is_continued_by(tokens, mask)


@pytest.mark.parametrize("length", [16, 24, 60, 300])
@pytest.mark.parametrize("place", [0, 5, -1])
@pytest.mark.parametrize("samples", [[0], [0, 1, 2]])
def test_is_changed_in_a_transcript_of_which_a_token_differs(
    tokens: Tensor, length: int, place: int, samples: list[int]
) -> None:
    other = tokens[:, : length + 9].clone()
    other[samples, place % length] += 1
    assert is_changed(history(tokens[:, :length]), other)


@pytest.mark.parametrize("length", [20, 100, 300])
def test_is_changed_in_a_transcript_behind_other_tokens(tokens: Tensor, length: int) -> None:
    read = history(tokens[:, :length])
    new = torch.randint(1000, (3, 30), generator=torch.Generator().manual_seed(1))
    assert not is_changed(read, torch.cat([new] * 12, 1))
    assert is_changed(read, torch.cat([new[:, :1], tokens[:, :length], new], 1))
    if length > HELD:  # the end has changed too
        assert is_changed(read, torch.cat([new[:, :1], tokens[:, : length - 9], new], 1))
        assert is_changed(read, torch.cat([new, tokens[:, 9:length], new], 1))


def test_is_changed_in_a_transcript_whose_answer_is_tokenized_otherwise(tokens: Tensor) -> None:
    other = torch.cat([tokens[:, :20], tokens[:, 200:290]], 1)
    assert is_changed(history(tokens[:, :80]), other)
    assert is_changed(history(tokens[:, :25]), torch.cat([tokens[:, :9], tokens[:, 200:290]], 1))


def test_is_changed_in_a_batch_of_which_one_sample_has_changed(tokens: Tensor) -> None:
    read, other = history(tokens[:, :100]), tokens[:, :120].clone()
    other[0, 8:100] = tokens[1, 108:200]
    assert not read.is_continued_by(other, every(other))
    assert is_changed(read, other)
    other[0] = tokens[0, 150:270]
    assert is_changed(read, other)


def test_is_changed_in_a_transcript_that_is_padded_otherwise(tokens: Tensor) -> None:
    ids, mask = left_padded([tokens[0, :50], tokens[1, :60]])
    read = history(ids, mask=mask)
    longer, its_mask = left_padded([tokens[0, :90], tokens[1, :70]])
    assert not read.is_continued_by(longer, its_mask)
    assert read.is_changed_in(longer, its_mask)
    same, its_mask = left_padded([tokens[0, :80], tokens[1, :90]])
    assert read.is_continued_by(same, its_mask)


@pytest.mark.parametrize(("read", "new"), [(100, 12), (60, 40), (100, 90)])
def test_shorter_prompts_of_one_chat_template_are_new(tokens: Tensor, read: int, new: int) -> None:
    """Which begin with the same 24 tokens, a system's message."""
    prompt = torch.cat([tokens[:, :24], tokens[:, 200 : 200 + new - 24 if new > 24 else 200]], 1)
    assert not is_changed(history(tokens[:, :read]), prompt[:, :new])


def test_prompts_that_begin_with_a_few_equal_tokens_are_new(tokens: Tensor) -> None:
    prompt = torch.cat([tokens[:, :7], tokens[:, 200:280]], 1)
    assert not is_changed(history(tokens[:, :60]), prompt)


def test_embeddings_are_hashed() -> None:
    embeddings = torch.randn(2, 9, 5)
    one, other = history(embeddings), history(embeddings, pieces=[4, 5])
    assert torch.equal(one.hash, other.hash)
    embeddings[1, 3, 2] += 1
    assert (history(embeddings).hash == one.hash).tolist() == [True, False]


def test_has_mask(tokens: Tensor) -> None:
    mask = every(tokens)
    mask[0, :4] = mask[2, 100] = False
    read = history(tokens, pieces=[7, 303], mask=mask)
    assert read.has_mask(mask)
    assert not read.has_mask(torch.ones_like(mask))
    assert not read.has_mask(mask.roll(1, 1))


def test_size_grows_by_two_marks_where_the_text_doubles() -> None:
    sizes = [history(torch.ones(1, n, dtype=torch.int64)).marks.shape[1] for n in (64, 128, 4096)]
    assert sizes == [16, 18, 28]
