"""Base class of the caches of retrofitted models, as a Hugging Face cache.

One cache can precede any number of prompts. `generate` gets a prompt alone, or the whole text that
began with what the cache has read; hashes of the tokens read tell the two apart.
"""

import copy
from collections.abc import Callable
from typing import Any, NoReturn, Self
from weakref import ref

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from infini.errors import InputError
from infini.model.architectures import CACHE
from infini.model.retrofit_config import RetrofitConfig
from infini.model.token_history import TokenHistory

HISTORIES = ("text", "sequence")
# Fingerprint of memory layers whose base has changed since the retrofit
CHANGED_BASE = "changed base"
# Fingerprint of a cache that two different models have read
MIXED = "mixed"


class MemoryCache(Cache):  # type: ignore[misc]
    """State of a retrofitted model between two calls; a call advances it in place.

    Attributes:
        seen_tokens: tokens read since the first, without padding.
        nbytes: size of the state, in bytes.
    """

    # Format of the saved cache, with its version
    file_format: str
    # Keys and values that the base itself has cached
    base_cache: DynamicCache

    def __init__(self, fingerprint: str, dtype: str | None = None):
        super().__init__(layers=[])
        # Identifies the memory layers that wrote the cache
        self.fingerprint = fingerprint
        # Type of the weights that wrote it, as "float32"; None: not known
        self.dtype = dtype
        # What the weights were at the last pass (`StatefulDecoder.weights_version`)
        self.weights_version: Any = None
        # Config of the retrofit that created or adopted the cache; None: loaded, not adopted yet
        self.owner: ref[RetrofitConfig] | None = None
        # Which cached columns are tokens, not padding: (B, C) bool, on the CPU
        self.token_mask = torch.zeros(0, 0, dtype=torch.bool)
        # Tokens read, without padding: (B,) int64, on the CPU
        self.token_counts = torch.zeros(0, dtype=torch.int64)
        # All that was read
        self.text = TokenHistory.empty(0)
        # What was read since the caller's last prompt that stood alone
        self.sequence = TokenHistory.empty(0)
        # Whether every pass takes a snapshot before it, for `crop`
        self.records_past = False
        # Whether `crop` may go back further than asked: `generate` reads the rest again
        self.rereads = False
        # Attributes before the last pass
        self._snapshot: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "owner": None, "_snapshot": None}  # no weak reference can be pickled

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied._set_attributes(self._copy_attributes())
        copied.detach_()  # a tensor with a graph cannot be copied
        copied._set_attributes({n: copy.deepcopy(x, memo) for n, x in vars(copied).items()})
        return copied

    @property
    def batch_size(self) -> int:
        """Number of samples; 0: not known yet."""
        return len(self.token_counts)

    @property
    def seen_tokens(self) -> int:
        """Number of tokens read since the first, without padding; of the longest sample."""
        return int(self.token_counts.max()) if self.batch_size else 0

    @property
    def nbytes(self) -> int:
        """Size of the state, in bytes: of all that a later answer depends on."""
        raise NotImplementedError

    @property
    def max_mask_columns(self) -> int:
        """Most columns that an attention mask may have for the tokens read."""
        return max(self.text.length, self.token_mask.shape[1])

    def check_mask(self, attention_mask: Tensor | None, tokens: int) -> None:
        """Raise InputError for a mask that differs from what was read.

        Args:
            attention_mask: as the call's, (B, past + T) or (B, T).
            tokens: number of new tokens, T.
        """
        if attention_mask is None or attention_mask.shape[1] <= tokens:
            return
        past = (attention_mask[:, :-tokens] != 0).cpu()
        known = [h for h in (self.sequence, self.text) if h.length == past.shape[1]]
        if not (any(h.has_mask(past) for h in known) if known else bool(past.all())):
            raise InputError(
                f"attention_mask differs from the cache's on the {past.shape[1]} tokens that it "
                "has read, which a memory cannot hide: give it unchanged, or for the new tokens "
                "alone (where none is given, generate hides every pad token)"
            )

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
        self.token_counts = torch.zeros(batch, dtype=torch.int64)
        self.text = self.sequence = TokenHistory.empty(batch)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of the state by name, to save them."""
        raise NotImplementedError

    @classmethod
    def from_tensors(cls, fingerprint: str, tensors: dict[str, Tensor]) -> Self:
        """Return the cache whose `tensors()` these are; KeyError where one is missing."""
        raise NotImplementedError

    def history_tensors(self) -> dict[str, Tensor]:
        """Return what the cache knows of the tokens read, by name, to save it."""
        return {
            f"{name}.{key}": tensor
            for name in HISTORIES
            for key, tensor in {
                **getattr(self, name).tensors(),
                "length": torch.tensor(getattr(self, name).length),
            }.items()
        }

    def load_history(self, tensors: dict[str, Tensor]) -> None:
        """Take `history_tensors()` back, out of `tensors`; KeyError where one is missing."""
        for name in HISTORIES:
            own = {key: tensors.pop(f"{name}.{key}") for key in TokenHistory.empty(0).tensors()}
            length = int(tensors.pop(f"{name}.length"))
            setattr(self, name, TokenHistory(length, **own))

    def _apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply `change` to all tensors that the model computed, in place."""
        for layer in self.base_cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = change(layer.keys), change(layer.values)

    def to(self, device: torch.device) -> Self:
        """Move the cache, in place."""
        self._apply(lambda x: x.to(device))
        return self

    def detach_(self) -> Self:
        """Drop the graph that led to the cache, in place, for truncated backpropagation."""
        self._apply(Tensor.detach)
        return self

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these samples in this order, in place; indices: (n,) int64."""
        self.token_mask = self.token_mask[indices.cpu()]
        self.token_counts = self.token_counts[indices.cpu()]
        self.text, self.sequence = self.text.select(indices), self.sequence.select(indices)
        self._snapshot = None

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def append(self, inputs: Tensor, token_mask: Tensor) -> None:
        """Count and hash the text's next tokens, (B, T), or embeddings, (B, T, d)."""
        same = self.sequence is self.text
        self.token_counts = self.token_counts + token_mask.sum(1)
        self.text = self.text.append(inputs, token_mask)
        self.sequence = self.text if same else self.sequence.append(inputs, token_mask)

    def start_or_continue(self, input_ids: Tensor, token_mask: Tensor) -> bool:
        """Start a new sequence unless the prompt continues what was read.

        Args:
            input_ids: the prompt, (B, T).
            token_mask: which of its tokens are no padding, (B, T) bool, on the CPU.

        Returns:
            Whether the prompt starts a new sequence.

        Raises:
            InputError: the prompt repeats what was read, but not all of it, or nothing follows.
        """
        if self.sequence.length:
            for history in (self.sequence, self.text):
                if history.is_continued_by(input_ids, token_mask):
                    self.sequence = history
                    return False
            for history in (self.sequence, self.text):
                if history.is_changed_in(input_ids, token_mask):
                    raise InputError(
                        f"the prompt repeats some of the {history.length} tokens that {CACHE} has "
                        "read, but does not begin with all of them and go on: give the whole text "
                        "unchanged, padding too, or new tokens alone (after "
                        f"{CACHE}.reset_sequence(), whatever they are)"
                    )
        self.reset_sequence()
        return True

    def reset_sequence(self) -> None:
        """Take the next prompt as new tokens, whatever they are; the memory stays."""
        self.sequence = TokenHistory.empty(self.batch_size)

    def take_snapshot(self) -> None:
        """Remember the state, to which `crop` goes back."""
        self._snapshot = self._copy_attributes()

    def stop_recording(self) -> None:
        """Forget the snapshot, and take no more."""
        self.records_past, self.rereads, self._snapshot = False, False, None

    def _copy_attributes(self) -> dict[str, Any]:
        """Return the attributes and copies of their containers; a pass changes no tensor."""
        own = {**vars(self), "_snapshot": None}
        own = {name: dict(x) if isinstance(x, dict) else x for name, x in own.items()}
        own["base_cache"] = copy.copy(self.base_cache)
        own["base_cache"].layers = [copy.copy(layer) for layer in self.base_cache.layers]
        return own

    def _set_attributes(self, attributes: dict[str, Any]) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)

    # Attributes of transformers' caches: not compilable; `generate` cuts the prompt by the tokens
    # read
    is_compileable = False
    is_croppable = True
    is_linear = (False,)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens of the caller's sequence that were read, with padding."""
        return self.sequence.length

    def activate_past_recording(self) -> None:
        """Take a snapshot of the state, which is small, before every pass from now on."""
        self.records_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, as far as they were read by the last recorded pass.

        Args:
            tokens_to_remove: minus the number of tokens; 0: the pass stays.

        Raises:
            InputError: no pass was recorded, or it has not read exactly these tokens.
        """
        snapshot, self._snapshot = self._snapshot, None
        if not tokens_to_remove:
            return
        read = 0 if snapshot is None else self.text.length - snapshot["text"].length
        wrong = read < -tokens_to_remove if self.rereads else read != -tokens_to_remove
        if snapshot is None or tokens_to_remove > 0 or wrong:
            raise InputError(
                f"a memory cannot remove its last tokens: {CACHE}.crop goes back to before the "
                f"last pass after activate_past_recording(), by {-read}, got {tokens_to_remove}"
            )
        self._set_attributes(snapshot)

    def update(self, *_: Any, **__: Any) -> NoReturn:
        raise InputError(
            f"{CACHE} belongs to a model with a memory, this one has none: pass it a cache of its "
            "own, or infini.retrofit it as before"
        )

    def get_mask_sizes(self, *_: Any, **__: Any) -> NoReturn:
        self.update()

    def reset(self) -> None:
        owner = self.owner
        self.__init__(self.fingerprint, self.dtype)  # type: ignore[misc]
        self.owner = owner
