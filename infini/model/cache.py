"""Base class of the caches of retrofitted models, as a Hugging Face cache.

One cache can precede any number of prompts. `generate` gets a prompt alone, or the whole sequence
that began with the last prompt; a hash of the tokens read tells the two apart.
"""

import copy
from typing import Any, Self
from weakref import ref

import torch
from torch import Tensor
from transformers import Cache

from infini.errors import InputError
from infini.model.architectures import CACHE
from infini.model.retrofit_config import RetrofitConfig

HASH_FACTOR = 6364136223846793005  # Σ (token + 1) · HASH_FACTORⁱ, modulo 2⁶⁴


class MemoryCache(Cache):  # type: ignore[misc]
    """State of a retrofitted model between two calls; a call advances it in place."""

    # Format of the saved cache, with its version
    file_format: str

    def __init__(self, fingerprint: str):
        super().__init__(layers=[])
        # Identifies the memory layers that wrote the cache
        self.fingerprint = fingerprint
        # Config of the retrofit that created or adopted the cache; None: loaded, not adopted yet
        self.owner: ref[RetrofitConfig] | None = None
        # Which cached columns are tokens, not padding: (B, C) bool, on the CPU
        self.token_mask = torch.zeros(0, 0, dtype=torch.bool)
        # Tokens of the caller's sequence that were read, padding included
        self.sequence_length = 0
        # Hash of these tokens: (B,) int64; None: nothing hashed
        self.sequence_hash: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "owner": None}  # a weak reference cannot be pickled

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    @property
    def batch_size(self) -> int:
        """Number of samples; 0: not known yet."""
        return self.token_mask.shape[0]

    @property
    def max_mask_columns(self) -> int:
        """Most columns that an attention mask may have for the tokens read."""
        return max(self.sequence_length, self.token_mask.shape[1])

    def initialize(self, batch: int) -> None:
        """Set the batch size of an empty cache; InputError where another one is set."""
        if not self.batch_size:
            self._set_batch_size(batch)
        if self.batch_size != batch:
            raise InputError(
                f"{CACHE} holds {self.batch_size} samples, the batch has {batch}: "
                "repeat it with batch_repeat_interleave"
            )

    def _set_batch_size(self, batch: int) -> None:
        self.token_mask = torch.zeros(batch, 0, dtype=torch.bool)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the cache by name, to save them."""
        raise NotImplementedError

    @classmethod
    def from_tensors(cls, fingerprint: str, tensors: dict[str, Tensor]) -> Self:
        """Return the cache whose `tensors()` these are; KeyError where one is missing."""
        raise NotImplementedError

    def to(self, device: torch.device) -> Self:
        """Move the cache, in place."""
        raise NotImplementedError

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these samples in this order, in place; indices: (n,) int64."""
        self.token_mask = self.token_mask[indices.cpu()]
        if self.sequence_hash is not None:
            self.sequence_hash = self.sequence_hash[indices.to(self.sequence_hash.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def append(self, inputs: Tensor) -> None:
        """Count and hash the sequence's next tokens, (B, T), or embeddings, (B, T, d)."""
        if not inputs.is_floating_point():
            new = _hash_tokens(inputs, self.sequence_length)
            self.sequence_hash = new if self.sequence_hash is None else self.sequence_hash + new
        self.sequence_length += inputs.shape[1]

    def start_or_continue(self, input_ids: Tensor) -> bool:
        """Start a new sequence unless the prompt continues the one that was read.

        Args:
            input_ids: the prompt, (B, T).

        Returns:
            Whether the prompt starts a new sequence.
        """
        length = self.sequence_length
        if input_ids.shape[1] > length > 0 and self.sequence_hash is not None:
            prefix = _hash_tokens(input_ids[:, :length], 0)
            if prefix.shape == self.sequence_hash.shape and bool(
                (prefix == self.sequence_hash).all()
            ):
                return False
        self.reset_sequence()
        return True

    def reset_sequence(self) -> None:
        """Start a new sequence with the next tokens; the memory stays."""
        self.sequence_length, self.sequence_hash = 0, None

    # Of transformers' caches: nothing is compiled; a prompt is cut by the tokens read
    is_compileable = False
    is_linear = (False,)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.sequence_length

    def crop(self, tokens_to_remove: Any) -> None:
        raise InputError(
            "a memory cannot remove its last tokens: assisted decoding is not supported"
        )

    def reset(self) -> None:
        owner = self.owner
        self.__init__(self.fingerprint)  # type: ignore[misc]
        self.owner = owner


def _hash_tokens(tokens: Tensor, start: int) -> Tensor:
    """Return the hash, (B,), of tokens (B, T) from position `start` on; parts' hashes add up."""
    first = pow(HASH_FACTOR, start, 2**64)
    factors = torch.full((tokens.shape[1],), HASH_FACTOR, device=tokens.device)
    factors[:1] = first - 2**64 if first >= 2**63 else first  # as an int64
    return ((tokens + 1) * factors.cumprod(0)).sum(1)
