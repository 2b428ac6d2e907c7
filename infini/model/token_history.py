"""Number and hashes of the tokens that a cache has read, in nearly constant space.

The hash of tokens x₀ … xₙ₋₁ is Σ (xᵢ + 1) · HASH_FACTORⁱ modulo 2⁶⁴, so that the hashes of parts
add up. Hashes of the first 4, 8, … 64 tokens, and of the first 2ʲ and 1.5 · 2ʲ after that, tell
a changed transcript from new tokens.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

HASH_FACTOR = 6364136223846793005
TAIL = 32  # last tokens that are held as they are


@dataclass(frozen=True)
class TokenHistory:
    """Tokens that were read since some first one, padding included; nothing changes in place."""

    length: int
    """Number of tokens of each sample"""
    hash: Tensor
    """Hash of all tokens: (B,) int64"""
    mask_hash: Tensor
    """Hash of which of them are no padding: (B,) int64, on the CPU"""
    marks: Tensor
    """Hashes of the first n tokens, n as in `_mark_positions`: (B, M) int64"""
    tail: Tensor
    """The last tokens as hashed, at most TAIL: (B, ·) int64"""

    @classmethod
    def empty(cls, batch: int) -> Self:
        """Return the history before the first token."""
        zeros, none = torch.zeros(batch, dtype=torch.int64), torch.zeros(batch, 0).long()
        return cls(0, zeros, zeros, none, none)

    def append(self, inputs: Tensor, token_mask: Tensor) -> Self:
        """Return the history after more tokens.

        Args:
            inputs: tokens, (B, T), or embeddings, (B, T, d).
            token_mask: which are no padding, (B, T) bool, on the CPU.
        """
        values, before = _hash_values(inputs), self.length
        length = before + values.shape[1]
        old, marks, tail = (x.to(values.device) for x in (self.hash, self.marks, self.tail))
        terms = _hash_terms(values, before)
        new = [n - before - 1 for n in _mark_positions(length)[marks.shape[1] :]]
        if new:
            marks = torch.cat([marks, (old[:, None] + terms.cumsum(1))[:, new]], 1)
        mask_hash = self.mask_hash + _hash_terms(token_mask.long() + 1, before).sum(1)
        tail = torch.cat([tail, values], 1)[:, -TAIL:].clone()
        return type(self)(length, old + terms.sum(1), mask_hash, marks, tail)

    def select(self, samples: Tensor) -> Self:
        """Return the history of these samples, in this order; samples: (n,) int64."""
        own = {name: x[samples.to(x.device)] for name, x in self.tensors().items()}
        return type(self)(self.length, **own)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "length"}

    def is_continued_by(self, input_ids: Tensor) -> bool:
        """Return whether tokens (B, T) begin with all that was read and go on."""
        if input_ids.shape[1] <= self.length or len(input_ids) != len(self.hash):
            return False
        begin = _hash_terms(_hash_values(input_ids[:, : self.length])).sum(1)
        return torch.equal(begin, self.hash.to(begin.device))

    def count_repeated(self, input_ids: Tensor) -> tuple[int, bool]:
        """Return how many of the tokens (B, T) repeat what was read, in all samples.

        Counted are whole stretches between two marks that are equal at their place, or else the
        last TAIL tokens read, wherever they are.

        Returns:
            The number, and whether the repeated tokens are the beginning alone, as those of two
            prompts that a chat template has framed.
        """
        if len(input_ids) != len(self.hash):
            return 0, True
        values = _hash_values(input_ids)
        end = min(values.shape[1], self.length)
        places = _mark_positions(end)
        own = self.marks[:, : len(places)].to(values.device)
        if end == self.length:
            places, own = [*places, end], torch.cat([own, self.hash[:, None].to(own.device)], 1)
        repeated, beginning = 0, True
        if places:
            given = _hash_terms(values).cumsum(1)[:, [n - 1 for n in places]]
            difference = torch.cat([torch.zeros_like(own[:, :1]), given - own], 1)
            equal = (difference[:, 1:] == difference[:, :-1]).all(0)
            widths = torch.tensor(places).diff(prepend=torch.zeros(1, dtype=torch.int64))
            equal = equal.cpu()
            repeated = int(widths[equal].sum())
            beginning = bool((equal[:-1] >= equal[1:]).all())
        if repeated < TAIL <= min(values.shape[1], self.length):
            tail = self.tail.to(values.device)[:, None]
            if bool((values.unfold(1, TAIL, 1) == tail).all(2).all(0).any()):
                repeated = TAIL
        return repeated, beginning

    def is_changed_in(self, input_ids: Tensor) -> bool:
        """Return whether tokens (B, T) are a changed text of what was read, rather than new ones.

        They are if they repeat TAIL tokens, or are as long as what was read and repeat half of it,
        or three quarters from its beginning on.
        """
        repeated, beginning = self.count_repeated(input_ids)
        if input_ids.shape[1] < self.length:
            return repeated >= TAIL
        share = self.length * 3 // 4 if beginning else self.length // 2
        return repeated >= min(TAIL, max(8, share))

    def has_mask(self, token_mask: Tensor) -> bool:
        """Return whether exactly these tokens, (B, length) bool on the CPU, were no padding."""
        if not self.length:
            return True
        return torch.equal(_hash_terms(token_mask.long() + 1).sum(1), self.mask_hash)


def _hash_values(inputs: Tensor) -> Tensor:
    """Return what is hashed of tokens (B, T) or embeddings (B, T, d): (B, T) int64."""
    if not inputs.is_floating_point():
        return inputs.long() + 1
    bits = inputs.detach().float().contiguous().view(torch.int32).long()
    return _hash_terms(bits.flatten(0, 1)).sum(1).view(inputs.shape[:2])


def _hash_terms(values: Tensor, start: int = 0) -> Tensor:
    """Return what each value, (B, T), adds to the hash; the first is at place `start`."""
    first = pow(HASH_FACTOR, start, 2**64)
    factors = torch.full((values.shape[1],), HASH_FACTOR, device=values.device)
    factors[:1] = first - 2**64 if first >= 2**63 else first  # as an int64
    return values * factors.cumprod(0)


def _mark_positions(length: int) -> list[int]:
    """Return the lengths, up to `length`, of the beginnings whose hashes are held."""
    places = list(range(4, min(length, 64) + 1, 4))
    step = 32
    while places and places[-1] + step <= length and places[-1] >= 64:
        places.append(places[-1] + step)
        if places[-1] & (places[-1] - 1) == 0:  # a power of two
            step *= 2
    return places
