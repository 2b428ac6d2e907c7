"""Batches of unequal texts: padding moved to the end, tokens dealt out at segment boundaries."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from infini.errors import InputError


@dataclass(frozen=True)
class Part:
    """Some consecutive tokens of every sample of a batch."""

    starts: Tensor  # (B,) int64, on the CPU
    counts: Tensor  # (B,) int64, on the CPU; zero where a sample has no token in this part

    @property
    def width(self) -> int:
        """Tokens of the sample that has the most."""
        return int(self.counts.max())

    @property
    def even(self) -> bool:
        """Every sample has the same tokens in it."""
        return bool((self.starts == self.starts[0]).all() and (self.counts == self.counts[0]).all())

    def take(self, x: Tensor, axis: int) -> Tensor:
        """This part's tokens; (B, …, T, …) → (B, …, width, …), samples with fewer padded."""
        if self.even:
            start = int(self.starts[0])
            return x if self.width == x.shape[axis] else x.narrow(axis, start, self.width)
        index = self.starts[:, None] + torch.arange(self.width)  # (B, width)
        return gather(x, index.clamp(max=x.shape[axis] - 1).to(x.device), axis)


def gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """x[b, …, index[b, i], …] for (B, n) indices along `axis`."""
    return torch.take_along_dim(x, _along(index, x.ndim, axis), axis)


def swap_halves(x: Tensor) -> Tensor:
    """(B, …) with the first and the second half of the samples in each other's place; B even."""
    return x.roll(len(x) // 2, 0)


def _along(index: Tensor, dims: int, axis: int) -> Tensor:
    """(B, n) → (B, 1, …, n, …, 1) of `dims` axes, a view."""
    shape = [1] * dims
    shape[0], shape[axis] = index.shape
    return index.view(shape)


class Parts(NamedTuple):
    """A batch's tokens, cut at its samples' segment boundaries; any part may be empty."""

    begun: Part  # to the end of the segment begun
    whole: Part  # whole segments
    rest: Part  # the start of the next segment

    @property
    def used(self) -> list[Part]:
        """Those that have tokens, in order."""
        return [part for part in self if part.width]


def split(pending: Tensor, lengths: Tensor, segment_length: int) -> Parts:
    """Cut `lengths` new tokens where `pending` tokens of a segment are there already.

    Both: (B,) int64 on the CPU.
    """
    head = torch.minimum((-pending) % segment_length, lengths)
    whole = (lengths - head) // segment_length * segment_length
    return Parts(
        Part(torch.zeros_like(head), head),
        Part(head, whole),
        Part(head + whole, lengths - head - whole),
    )


def drive(
    parts: Parts,
    tokens: int,
    axis: int,
    *,
    begun: Callable[[Part], Tensor],
    whole: Callable[[Part], Tensor],
) -> Tensor | None:
    """Run the parts that have tokens, in order, and join the results along `axis`.

    whole: run on the whole segments, begun: on the parts of a segment; of (B, …, part.width, …).
    Returns (B, …, T, …), T being `tokens`, zero where a sample has none; None if none has any.
    """
    steps = ((parts.begun, begun), (parts.whole, whole), (parts.rest, begun))
    done = [(part, step(part)) for part, step in steps if part.width]
    return join(done, tokens, axis) if done else None


def join(parts: list[tuple[Part, Tensor]], tokens: int, axis: int) -> Tensor:
    """The inverse of `take`: (B, …, T, …), zero where a sample has no token."""
    if len(parts) == 1 and parts[0][0].even and parts[0][0].width == tokens:
        return parts[0][1]
    columns = torch.cat([x for _, x in parts], axis)
    if all(part.even for part, _ in parts):
        missing = tokens - columns.shape[axis]
        return torch.nn.functional.pad(columns, (0, 0) * (columns.ndim - 1 - axis) + (0, missing))
    at, offset = torch.arange(tokens), 0
    index = torch.full(
        (1, tokens), -1
    )  # a token's place in `columns`: (B, T), -1 where it has none
    for part, x in parts:
        inside = at - part.starts[:, None]  # (B, T)
        mine = (inside >= 0) & (inside < part.counts[:, None])
        index = torch.where(mine, inside + offset, index)
        offset += x.shape[axis]
    index = index.to(columns.device)
    real = _along(index >= 0, columns.ndim, axis)
    return gather(columns, index.clamp_min(0), axis).where(real, 0)


@dataclass(frozen=True)
class Packing:
    """Where every sample's real tokens are: moves padding behind them, and back."""

    lengths: Tensor  # real tokens: (B,) int64, on the CPU
    order: Tensor | None  # (B, T): real tokens first; None where they already are

    @classmethod
    def of(cls, batch: int, tokens: int, mask: Tensor | None) -> "Packing":
        """From a (B, T) mask, zero or False on padding; None: no padding. InputError: its size."""
        if mask is not None and mask.shape != (batch, tokens):
            raise InputError(
                f"mask: ({batch}, {tokens}), samples and tokens, is needed, got {tuple(mask.shape)}"
            )
        if mask is None or bool((mask != 0).all()):
            return cls(torch.full((batch,), tokens), None)
        real = mask != 0
        sorted_already = bool((real[:, :-1] >= real[:, 1:]).all())
        order = None if sorted_already else (~real).to(torch.uint8).argsort(dim=1, stable=True)
        return cls(real.sum(1).cpu(), order)

    def pack(self, x: Tensor, axis: int) -> Tensor:
        """Every sample's real tokens first; (B, …, T, …), T at `axis`."""
        return x if self.order is None else gather(x, self.order, axis)

    def unpack(self, x: Tensor, axis: int) -> Tensor:
        """The inverse of `pack`."""
        return x if self.order is None else gather(x, self.order.argsort(1), axis)
