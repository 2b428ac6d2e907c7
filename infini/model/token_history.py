"""Number and hashes of the tokens that a cache has read, in nearly constant space.

The hash of tokens x₀ … xₙ₋₁ is Σ (xᵢ + 1) · HASH_FACTORⁱ modulo 2⁶⁴, so that the hashes of parts
add up. Padding does not count. Hashes of the first 4, 8, … 64 tokens, and of the first 2ʲ and
1.5 · 2ʲ after that, tell a changed transcript from new tokens; so do the first and the last tokens,
which are held as they are.
"""

from dataclasses import dataclass, fields
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

HASH_FACTOR = 6364136223846793005
HELD = 32  # first and last tokens that are held
MIN_REPEATED = 8  # fewer tokens may be the frame of a chat template


@dataclass(frozen=True)
class TokenHistory:
    """Tokens that were read since some first one; nothing changes in place."""

    length: int
    """Number of columns read, padding included"""
    counts: Tensor
    """Number of tokens of each sample: (B,) int64, on the CPU"""
    hash: Tensor
    """Hash of all tokens: (B,) int64"""
    mask_hash: Tensor
    """Hash of which columns are no padding: (B,) int64, on the CPU"""
    marks: Tensor
    """Hashes of the first n tokens, n as in `_mark_positions`, 0 beyond: (B, M) int64"""
    head: Tensor
    """The first tokens as hashed, 0 beyond: (B, HELD) int64"""
    tail: Tensor
    """The last tokens as hashed, 0 before: (B, HELD) int64"""

    @classmethod
    def empty(cls, batch: int) -> Self:
        """Return the history before the first token."""
        zeros = torch.zeros(batch, dtype=torch.int64)
        held = torch.zeros(batch, HELD, dtype=torch.int64)
        return cls(0, zeros, zeros, zeros, held[:, :0], held, held)

    def append(self, inputs: Tensor, token_mask: Tensor) -> Self:
        """Return the history after more tokens.

        Args:
            inputs: tokens, (B, T), or embeddings, (B, T, d).
            token_mask: which are no padding, (B, T) bool, on the CPU.
        """
        values, before = _hash_values(inputs), self.counts[:, None]
        device = values.device
        old_hash, marks, head, tail = (
            x.to(device, copy=True) for x in (self.hash, self.marks, self.head, self.tail)
        )
        counts = before + token_mask.cumsum(1)  # (B, T), tokens so far
        terms = _hash_terms(values, counts - 1) * token_mask.to(device)
        sums = old_hash[:, None] + terms.cumsum(1)
        positions = _mark_positions(int(counts.max()))
        places = torch.tensor(positions).expand(len(values), -1).contiguous()  # (B, M)
        marks = F.pad(marks, (0, len(positions) - marks.shape[1]))
        is_new = ((places > before) & (places <= counts[:, -1:])).to(device)
        column = torch.searchsorted(counts, places).clamp(max=counts.shape[1] - 1).to(device)
        for sample, own in enumerate(token_mask):
            new = values[sample, own.nonzero()[:, 0].to(device)]
            known = min(int(before[sample]), HELD)
            head[sample, known : known + len(new)] = new[: HELD - known]
            tail[sample] = torch.cat([tail[sample], new[-HELD:]])[-HELD:]
        columns = torch.arange(self.length, self.length + values.shape[1])
        return type(self)(
            self.length + values.shape[1],
            self.counts + token_mask.sum(1),
            old_hash + terms.sum(1),
            self.mask_hash + _hash_terms(token_mask.long() + 1, columns).sum(1),
            torch.where(is_new, sums.gather(1, column), marks),
            head,
            tail,
        )

    def select(self, samples: Tensor) -> Self:
        """Return the history of these samples, in this order; samples: (n,) int64."""
        own = {name: x[samples.to(x.device)] for name, x in self.tensors().items()}
        return type(self)(self.length, **own)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "length"}

    def is_continued_by(self, input_ids: Tensor, token_mask: Tensor) -> bool:
        """Return whether a prompt begins with all that was read, padded alike, and goes on.

        Args:
            input_ids: The prompt, (B, T).
            token_mask: Which tokens are no padding, (B, T) bool, on the CPU.
        """
        if not 0 < self.length < input_ids.shape[1] or len(input_ids) != len(self.hash):
            return False
        begin, mask = input_ids[:, : self.length], token_mask[:, : self.length]
        if not self.has_mask(mask):
            return False
        given = type(self).empty(len(input_ids)).append(begin, mask)
        return torch.equal(given.hash, self.hash.to(given.hash.device))

    def is_changed_in(self, input_ids: Tensor, token_mask: Tensor) -> bool:
        """Return whether a prompt is a changed text of what was read, rather than new tokens.

        It is if in any sample it has the first or the last HELD tokens read, or fewer if fewer were
        read, wherever they are; if it repeats HELD tokens in whole stretches between two marks, at
        their place; or if it is as long as what was read, and repeats its first MIN_REPEATED tokens
        or half of it.

        Args:
            input_ids: The prompt, (B, T).
            token_mask: Which tokens are no padding, (B, T) bool, on the CPU.
        """
        if len(input_ids) != len(self.hash) or not self.length or not input_ids.shape[1]:
            return False
        given = type(self).empty(len(input_ids)).append(input_ids, token_mask)
        values = _hash_values(input_ids).cpu()
        for sample, count in enumerate(self.counts.tolist()):
            width = min(HELD, count)
            tokens = values[sample, token_mask[sample]]
            held = self.head[sample, :width].cpu(), self.tail[sample, HELD - width :].cpu()
            if width >= MIN_REPEATED and any(_contains(tokens, x) for x in held):
                return True
            repeated, beginning = self._count_repeated(given, sample)
            needed = HELD
            if len(tokens) >= count:
                needed = MIN_REPEATED if beginning else max(MIN_REPEATED, min(HELD, count // 2))
            if repeated >= needed:
                return True
        return False

    def _count_repeated(self, given: Self, sample: int) -> tuple[int, bool]:
        """Count a sample's tokens in stretches between two marks that are equal at their place.

        Returns:
            The number, and whether they are the beginning alone.
        """
        places = _mark_positions(int(min(self.counts[sample], given.counts[sample])))
        own, other = (x.marks[sample, : len(places)].cpu() for x in (self, given))
        difference = torch.cat([torch.zeros(1, dtype=torch.int64), other - own])
        equal = difference[1:] == difference[:-1]
        widths = torch.tensor([0, *places]).diff()
        return int(widths[equal].sum()), bool((equal[:-1] >= equal[1:]).all())

    def has_mask(self, token_mask: Tensor) -> bool:
        """Return whether exactly these columns, (B, length) bool on the CPU, were no padding."""
        if not self.length:
            return True
        places = torch.arange(token_mask.shape[1])
        return torch.equal(_hash_terms(token_mask.long() + 1, places).sum(1), self.mask_hash)


def _hash_values(inputs: Tensor) -> Tensor:
    """Return what is hashed of tokens (B, T) or embeddings (B, T, d): (B, T) int64."""
    if not inputs.is_floating_point():
        return inputs.long() + 1
    bits = inputs.detach().float().contiguous().view(torch.int32).long()
    return (
        _hash_terms(bits.flatten(0, 1), torch.arange(bits.shape[2])).sum(1).view(inputs.shape[:2])
    )


def _hash_terms(values: Tensor, places: Tensor) -> Tensor:
    """Return what each value, (B, T), adds to the hash at its place, (T,) or (B, T) on the CPU."""
    places = places.clamp(min=0)  # -1: padding before the first token, which the caller drops
    first, last = int(places.min()), int(places.max())
    factors = torch.full((last - first + 1,), HASH_FACTOR, device=values.device)
    power = pow(HASH_FACTOR, first, 2**64)
    factors[:1] = power - 2**64 if power >= 2**63 else power  # as an int64
    return values * factors.cumprod(0)[(places - first).to(values.device)]


def _contains(tokens: Tensor, part: Tensor) -> bool:
    """Return whether tokens, (T,), have a part of them, (n,), in one piece anywhere."""
    if len(part) > len(tokens):
        return False
    windows = tokens.unfold(0, len(part), 1)
    return bool((windows == part).all(1).any())


def _mark_positions(length: int) -> list[int]:
    """Return the lengths, up to `length`, of the beginnings whose hashes are held."""
    places = list(range(4, min(length, 64) + 1, 4))
    step = 32
    while places and places[-1] + step <= length and places[-1] >= 64:
        places.append(places[-1] + step)
        if places[-1] & (places[-1] - 1) == 0:  # a power of two
            step *= 2
    return places
