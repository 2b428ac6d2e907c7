"""Retained pairs that a budget of state bytes pays for, a retention policy's own state included."""

import re
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from infini.errors import InputError
from infini.evaluation.cost import StateBytes, cache_after, state_bytes
from infini.memory.eviction import RetentionPolicy
from infini.model.architectures import context_length
from infini.model.modules import retained_modules, window_layers
from infini.model.retrofit import retained_pairs, sliding_window
from infini.model.window.cache import WindowCache

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def parse_bytes(size: int | str) -> int:
    """Return a number of bytes from 4000000, "4M", "4MB" or "3.8MiB" (K, M, G; Ki, Mi, Gi).

    Raises:
        InputError: It is none, or less than one byte.
    """
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = re.fullmatch(r"(\d+\.?\d*)\s*([KMG]I?|)B?", str(size).strip().upper())
    if not match or (found := int(float(match[1]) * _UNITS[match[2]])) < 1:
        raise InputError(
            f"state_bytes must be bytes, such as 4000000, '4M' or '4MiB', got {size!r}"
        )
    return found


def show_bytes(size: int) -> str:
    """Format a number of bytes with one decimal: "12.1 MB", "8 MB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{size} bytes"


def policy_state_bytes(
    base: PreTrainedModel,
    policy: str | RetentionPolicy,
    window: int,
    sinks: int,
    retained: int,
) -> int:
    """Return the state bytes of a base with retained pairs, which do not grow with a longer text.

    Args:
        base: The base, without a memory; it is unchanged afterwards.
        policy: Retention policy; it need not be fitted.
        window: Tokens of the window.
        sinks: First tokens that are always attended to.
        retained: Pairs that a key-value head retains.

    Returns:
        Bytes of the cache of one text: sinks, window, retained pairs with their positions, and the
        policy's scores and other state.

    Raises:
        InputError: No such policy, or an option that does not fit.
    """
    tokens = torch.zeros(1, window + sinks + 1, dtype=torch.int64, device=base.device)
    with retained_pairs(base, policy, window, sinks, retained) as model, torch.no_grad():
        for own in retained_modules(model).values():
            for weight in own.policy_weights.values():
                weight.fill_(1)  # as if it were fitted: sizes do not depend on values
        return state_bytes(cache_after(model, tokens)).total


class StateSize(NamedTuple):
    """State bytes by retained pairs or by tokens of a window, of which they are affine."""

    with_one: int
    per_item: int

    @classmethod
    def by_window(cls, base: PreTrainedModel, sinks: int) -> "StateSize":
        """Measure the state of a plain window.

        Layers that keep a sliding window of their own hold that, whatever the size of ours.

        Args:
            base: The base, without a memory; it is unchanged afterwards.
            sinks: First tokens that are always attended to.
        """
        tokens = torch.zeros(1, sinks + 2, dtype=torch.int64, device=base.device)
        with sliding_window(base, 1, sinks) as model, torch.no_grad():
            cache = cache_after(model, tokens)
            assert isinstance(cache, WindowCache)
            layers = window_layers(model)
            further = sum(
                state.bytes_per_token
                for index, state in cache.states.items()
                if layers[index].kept_window is None
            )
        return cls(state_bytes(cache).exact, further)

    @classmethod
    def by_retained(
        cls, base: PreTrainedModel, policy: str | RetentionPolicy, window: int, sinks: int
    ) -> "StateSize":
        """Measure the state with one pair and with two.

        Args:
            base: The base, without a memory; it is unchanged afterwards.
            policy: Retention policy, a registered name or an object; it need not be fitted.
            window: Tokens of the window.
            sinks: First tokens that are always attended to.

        Raises:
            InputError: No such policy, or an option that does not fit.
        """
        one, two = (policy_state_bytes(base, policy, window, sinks, k) for k in (1, 2))
        return cls(one, two - one)

    def of(self, number: int) -> int:
        """Return the state bytes with that many pairs or tokens, from 1 on."""
        return self.with_one + (number - 1) * self.per_item

    def most_within(self, budget: int) -> int:
        """Return the largest number within a budget of bytes; 0: there is none."""
        return max(0, 1 + (budget - self.with_one) // self.per_item)

    def fewest_for(self, total: int) -> int:
        """Return the smallest number, from 1 on, whose state has at least `total` bytes."""
        return max(1, 1 - (self.with_one - total) // self.per_item)


@torch.no_grad()
def full_attention_bytes(base: PreTrainedModel, length: int) -> int:
    """Return the bytes of the untouched base's own cache after `length` tokens.

    Layers with a sliding window of their own hold no more than that.
    """
    cache = cache_after(base, torch.zeros(1, 1, dtype=torch.int64, device=base.device))
    for layer in cache.layers:
        new = (
            x.new_zeros(*x.shape[:2], length - 1, x.shape[3]) for x in (layer.keys, layer.values)
        )
        layer.update(*new)
    return state_bytes(cache).exact


def window_bytes(base: PreTrainedModel, size: int, sinks: int) -> int:
    """Return the state bytes of a window of `size` tokens, the current one included, and sinks."""
    return StateSize.by_window(base, sinks).of(size)


def equal_window(base: PreTrainedModel, total: int, sinks: int) -> int:
    """Return the smallest window of at least `total` state bytes, at most the base's context."""
    longest = context_length(base)
    size = StateSize.by_window(base, sinks).fewest_for(total)
    return size if longest is None else min(size, longest - sinks)


def max_state_bytes(model: PreTrainedModel, tokens: Tensor, segment_length: int) -> StateBytes:
    """Count the state bytes of (1, T) tokens at their maximum: before a segment's last token."""
    tokens = tokens[:, : tokens.shape[1] // segment_length * segment_length - 1]
    return state_bytes(cache_after(model, tokens.to(model.device)))
