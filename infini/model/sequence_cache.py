"""What `generate` asks of a cache with a memory, and which of its caller's tokens it has read.

Such a cache answers any number of questions. `generate` is given a question alone, or all of the
sequence that began with the last one; what of it was read already is told by its digest.
"""

import copy
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from transformers import Cache

from infini.errors import InputError

FACTOR = 6364136223846793005  # of the digest: Σ (token + 1) · FACTORⁱ, modulo 2⁶⁴


class SequenceCache(Cache):  # type: ignore[misc]
    """A model's cache; every call that is given it moves it on, in place."""

    def __init__(self, fingerprint: str):
        super().__init__(layers=[])
        self.fingerprint = fingerprint  # of the memory layers that wrote it
        # The settings of the retrofit that made or checked it; None: loaded, none has taken it yet
        self.owner: ref[Any] | None = None
        self.live = torch.zeros(0, 0, dtype=torch.bool)  # columns kept that are not padding: (B, C)
        self.seen = 0  # tokens of the caller's sequence so far, padding included
        self.digest: Tensor | None = None  # of these: (B,) int64; None: of none

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "owner": None}  # of this process alone

    def __deepcopy__(self, memo: dict[int, Any]) -> "SequenceCache":
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    @property
    def columns(self) -> int:
        """That a mask may have for what it has read, at most."""
        return max(self.seen, self.live.shape[1])

    def select(self, samples: Tensor) -> None:
        """Keep these samples, in this order, in place; samples: (n,) int64."""
        if self.digest is not None:
            self.digest = self.digest[samples.to(self.digest.device)]

    def follow(self, inputs: Tensor) -> None:
        """The sequence goes on with these: tokens (B, T) or embeddings (B, T, d)."""
        if not inputs.is_floating_point():
            new = _digest(inputs, self.seen)
            self.digest = new if self.digest is None else self.digest + new
        self.seen += inputs.shape[1]

    def begin(self, tokens: Tensor) -> bool:
        """Take (B, T) tokens for a new sequence, unless they begin with the one so far.

        Returns whether they are new.
        """
        if tokens.shape[1] > self.seen > 0 and self.digest is not None:
            digest = _digest(tokens[:, : self.seen], 0)
            if digest.shape == self.digest.shape and bool((digest == self.digest).all()):
                return False
        self.restart()
        return True

    def restart(self) -> None:
        """What comes next is a new sequence, however it begins; the memory stays."""
        self.seen, self.digest = 0, None

    is_compileable = False
    is_linear = (False,)  # there are tokens in it: a prompt is cut by what was read

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select(indices)

    def crop(self, tokens_to_remove: Any) -> None:
        raise InputError("a memory cannot forget its last tokens: no assisted decoding")

    def reset(self) -> None:
        owner = self.owner
        self.__init__(self.fingerprint)  # type: ignore[misc]
        self.owner = owner


def _digest(tokens: Tensor, start: int) -> Tensor:
    """(B,), of tokens, (B, T), that stand at `start` of a sequence; parts' digests add up."""
    first = pow(FACTOR, start, 2**64)
    factors = torch.full((tokens.shape[1],), FACTOR, device=tokens.device)
    factors[:1] = first - 2**64 if first >= 2**63 else first  # as an int64
    return ((tokens + 1) * factors.cumprod(0)).sum(1)
