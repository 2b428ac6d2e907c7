"""Padding moved to the end and back; tokens cut at segment boundaries and joined again."""

import pytest
import torch
from torch import Tensor

from infini.memory.packing import Packing, Part, gather, join, run_parts, split

T, L = 21, 8
PENDING = torch.tensor([0, 3, 7, 5])
LENGTHS = torch.tensor([21, 18, 1, 0])


def tokens(axis: int) -> Tensor:
    """Tensor of (B, T, 2) or (B, 3, T, 2), no element zero."""
    shape = (4, T, 2) if axis == 1 else (4, 3, T, 2)
    return torch.arange(1, 1 + torch.Size(shape).numel()).view(shape)


def real(x: Tensor, lengths: Tensor, axis: int) -> Tensor:
    """Return x, zero behind each sample's tokens."""
    x = x.movedim(axis, 1).clone()
    for sample, length in zip(x, lengths.tolist(), strict=True):
        sample[length:] = 0
    return x.movedim(1, axis)


def bounds(part: Part) -> list[tuple[int, int]]:
    return list(zip(part.starts.tolist(), part.counts.tolist(), strict=True))


def test_split_at_odd_lengths() -> None:
    parts = split(PENDING, LENGTHS, L)
    assert bounds(parts.head) == [(0, 0), (0, 5), (0, 1), (0, 0)]
    assert bounds(parts.body) == [(0, 16), (5, 8), (1, 0), (0, 0)]
    assert bounds(parts.tail) == [(16, 5), (13, 5), (1, 0), (0, 0)]
    assert (parts.head.counts + parts.body.counts + parts.tail.counts).equal(LENGTHS)
    assert [part.width for part in parts] == [5, 16, 5]


@pytest.mark.parametrize("length", range(1, 2 * L + 2))
@pytest.mark.parametrize("pending", range(L))
def test_split_cuts_at_segment_boundaries(pending: int, length: int) -> None:
    parts = split(torch.tensor([pending]), torch.tensor([length]), L)
    position, nonempty = pending, []
    for part, name in zip(parts, ("head", "body", "tail"), strict=True):
        count = int(part.counts[0])
        assert int(part.starts[0]) == position - pending
        if count:
            nonempty.append(part)
            segments = {i // L for i in range(position, position + count)}
            if name == "body":
                assert position % L == 0
                assert count == L * len(segments)
            else:
                assert len(segments) == 1
                assert count < L
        position += count
    assert position == pending + length
    assert parts.nonempty == nonempty


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(
    ("pending", "lengths"),
    [
        (PENDING, LENGTHS),
        (torch.full((4,), 3), torch.full((4,), T)),
        (torch.full((4,), 3), torch.full((4,), 14)),
        (torch.zeros(4, dtype=torch.int64), torch.tensor([16, 8, 0, 8])),
        (torch.zeros(4, dtype=torch.int64), torch.full((4,), T)),
    ],
)
def test_join_is_the_inverse_of_take(axis: int, pending: Tensor, lengths: Tensor) -> None:
    x = tokens(axis)
    taken = [(part, part.take(x, axis)) for part in split(pending, lengths, L).nonempty]
    assert [piece.shape[axis] for _, piece in taken] == [part.width for part, _ in taken]
    assert torch.equal(join(taken, T, axis), real(x, lengths, axis))


@pytest.mark.parametrize("axis", [1, 2])
def test_run_parts_runs_in_order_and_joins(axis: int) -> None:
    x, parts, calls = tokens(axis), split(PENDING, LENGTHS, L), []

    def run_partial(part: Part) -> Tensor:
        calls.append(part)
        return -part.take(x, axis)

    def run_segments(part: Part) -> Tensor:
        calls.append(part)
        return 2 * part.take(x, axis)

    out = run_parts(parts, T, axis, run_partial=run_partial, run_segments=run_segments)
    assert [id(part) for part in calls] == [id(part) for part in parts]
    sign = torch.full((4, T), -1)
    sign[0, :16] = 2
    sign[1, 5:13] = 2
    shape = (4, T, 1) if axis == 1 else (4, 1, T, 1)
    assert out is not None
    assert torch.equal(out, real(x, LENGTHS, axis) * sign.view(shape))


def test_run_parts_skips_empty_parts() -> None:
    def never(part: Part) -> Tensor:
        raise AssertionError(part)

    x, none = tokens(1), torch.zeros(4, dtype=torch.int64)
    parts = split(none, torch.full((4,), 16), L)
    assert [id(part) for part in parts.nonempty] == [id(parts.body)]
    out = run_parts(parts, 16, 1, run_partial=never, run_segments=lambda part: part.take(x, 1))
    assert out is not None
    assert torch.equal(out, x[:, :16])
    assert split(none, none, L).nonempty == []
    assert run_parts(split(none, none, L), T, 1, run_partial=never, run_segments=never) is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("axis", [1, 2])
def test_pack_and_unpack(axis: int, dtype: torch.dtype) -> None:
    x = tokens(axis)
    mask = torch.ones(4, T, dtype=torch.bool)
    mask[1, :6] = False
    mask[2, -5:] = False
    mask[3, ::2] = False
    packing = Packing.from_mask(4, T, mask.to(dtype))
    packed = packing.pack(x, axis)
    assert packing.lengths.tolist() == [T, T - 6, T - 5, T // 2]
    for b in range(4):
        expected = x[b].movedim(axis - 1, 0)[mask[b]]
        assert torch.equal(packed[b].movedim(axis - 1, 0)[: len(expected)], expected)
    assert torch.equal(packing.unpack(packed, axis), x)


@pytest.mark.parametrize("mask", [None, torch.ones(4, T), torch.arange(T).expand(4, T) < 5])
def test_pack_moves_nothing_if_padding_is_at_the_end(mask: Tensor | None) -> None:
    packing, x = Packing.from_mask(4, T, mask), tokens(1)
    assert packing.order is None
    assert packing.lengths.tolist() == [T if mask is None else int(mask[0].sum())] * 4
    assert packing.pack(x, 1) is x
    assert packing.unpack(x, 1) is x


def test_gather_indexes_by_sample() -> None:
    index = torch.tensor([[2, 0], [1, 1], [5, 20], [0, 3]])
    x = tokens(2)
    expected = torch.stack([x[b][:, index[b]] for b in range(4)])
    assert torch.equal(gather(x, index, 2), expected)
