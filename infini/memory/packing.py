"""Batches of unequal lengths: padding moved to the end, tokens cut at segment boundaries."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from infini.errors import InputError


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of every sample of a batch."""

    starts: Tensor
    """First token of each sample: (B,) int64, on the CPU"""
    counts: Tensor
    """Number of tokens, zero where a sample has none in this part: (B,) int64, on the CPU"""

    @property
    def width(self) -> int:
        """Number of tokens of the sample that has the most."""
        return int(self.counts.max())

    @property
    def is_uniform(self) -> bool:
        """Whether all samples have the same tokens in it."""
        return bool((self.starts == self.starts[0]).all() and (self.counts == self.counts[0]).all())

    def take(self, x: Tensor, axis: int) -> Tensor:
        """Take this part's tokens: (B, …, T, …) → (B, …, width, …), T at `axis`.

        Samples with fewer tokens are padded with any values.
        """
        if self.is_uniform:
            start = int(self.starts[0])
            return x if self.width == x.shape[axis] else x.narrow(axis, start, self.width)
        index = self.starts[:, None] + torch.arange(self.width)  # (B, width)
        return gather(x, index.clamp(max=x.shape[axis] - 1).to(x.device), axis)


def gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    """Return x[b, …, index[b, i], …] for (B, n) indices along `axis`."""
    return torch.take_along_dim(x, _view_along(index, x.ndim, axis), axis)


def swap_halves(x: Tensor) -> Tensor:
    """Swap the first and the second half of the samples; x: (B, …), B even."""
    return x.roll(len(x) // 2, 0)


def _view_along(index: Tensor, dims: int, axis: int) -> Tensor:
    """(B, n) → (B, 1, …, n, …, 1) of `dims` axes, a view."""
    shape = [1] * dims
    shape[0], shape[axis] = index.shape
    return index.view(shape)


class Parts(NamedTuple):
    """Tokens of a batch, cut at its samples' segment boundaries; any part may be empty."""

    head: Part
    """Tokens up to the end of the pending segment"""
    body: Part
    """Whole segments"""
    tail: Part
    """The start of the next segment"""

    @property
    def nonempty(self) -> list[Part]:
        """Parts that have tokens, in order."""
        return [part for part in self if part.width]


def split(pending: Tensor, lengths: Tensor, segment_length: int) -> Parts:
    """Cut new tokens at segment boundaries.

    Args:
        pending: Number of tokens that the current segment has already, (B,) int64, on the CPU.
        lengths: Number of new tokens, (B,) int64, on the CPU.
        segment_length: Tokens.
    """
    head = torch.minimum((-pending) % segment_length, lengths)
    body = (lengths - head) // segment_length * segment_length
    return Parts(
        Part(torch.zeros_like(head), head),
        Part(head, body),
        Part(head + body, lengths - head - body),
    )


def run_parts(
    parts: Parts,
    tokens: int,
    axis: int,
    *,
    run_partial: Callable[[Part], Tensor],
    run_segments: Callable[[Part], Tensor],
) -> Tensor | None:
    """Run the parts that have tokens, in order, and join the results.

    Args:
        parts: Parts of the batch.
        tokens: T.
        axis: Axis of the tokens in the results.
        run_partial: Computes head and tail, parts of one segment: returns (B, …, width, …).
        run_segments: Computes the body, whole segments: likewise.

    Returns:
        (B, …, T, …), zero where a sample has no token; None if no part has tokens.
    """
    steps = ((parts.head, run_partial), (parts.body, run_segments), (parts.tail, run_partial))
    results = [(part, run(part)) for part, run in steps if part.width]
    return join(results, tokens, axis) if results else None


def join(parts: list[tuple[Part, Tensor]], tokens: int, axis: int) -> Tensor:
    """Join the results of parts, the inverse of `Part.take`.

    Returns:
        (B, …, T, …), T being `tokens`, at `axis`; zero where a sample has no token.
    """
    if len(parts) == 1 and parts[0][0].is_uniform and parts[0][0].width == tokens:
        return parts[0][1]
    columns = torch.cat([x for _, x in parts], axis)
    if all(part.is_uniform for part, _ in parts):
        missing = tokens - columns.shape[axis]
        return torch.nn.functional.pad(columns, (0, 0) * (columns.ndim - 1 - axis) + (0, missing))
    token, offset = torch.arange(tokens), 0
    index = torch.full((1, tokens), -1)  # column of each token: (B, T), -1 where there is none
    for part, x in parts:
        in_part = token - part.starts[:, None]  # (B, T)
        belongs = (in_part >= 0) & (in_part < part.counts[:, None])
        index = torch.where(belongs, in_part + offset, index)
        offset += x.shape[axis]
    index = index.to(columns.device)
    valid = _view_along(index >= 0, columns.ndim, axis)
    return gather(columns, index.clamp_min(0), axis).where(valid, 0)


@dataclass(frozen=True)
class Packing:
    """Order of a batch's tokens with padding at the end, and back."""

    lengths: Tensor
    """Number of real tokens: (B,) int64, on the CPU"""
    order: Tensor | None
    """Indices of the tokens, real ones first: (B, T); None where they are so already"""

    @classmethod
    def from_mask(cls, batch: int, tokens: int, mask: Tensor | None) -> "Packing":
        """Return the packing of a batch.

        Args:
            batch: B.
            tokens: T.
            mask: (B, T), zero or False on padding; None: no padding.

        Raises:
            InputError: The mask has another shape.
        """
        if mask is not None and mask.shape != (batch, tokens):
            raise InputError(
                f"mask must be ({batch}, {tokens}), samples and tokens, got {tuple(mask.shape)}"
            )
        if mask is None or bool((mask != 0).all()):
            return cls(torch.full((batch,), tokens), None)
        real = mask != 0
        is_sorted = bool((real[:, :-1] >= real[:, 1:]).all())
        order = None if is_sorted else (~real).to(torch.uint8).argsort(dim=1, stable=True)
        return cls(real.sum(1).cpu(), order)

    def pack(self, x: Tensor, axis: int) -> Tensor:
        """Move every sample's real tokens to the start; x: (B, …, T, …), T at `axis`."""
        return x if self.order is None else gather(x, self.order, axis)

    def unpack(self, x: Tensor, axis: int) -> Tensor:
        """Move tokens back, the inverse of `pack`."""
        return x if self.order is None else gather(x, self.order.argsort(1), axis)
