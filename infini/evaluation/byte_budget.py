"""How many retained pairs a budget of state bytes pays for, with a retention policy's own state."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from infini.evaluation.cost import cache_after, state_bytes
from infini.memory.eviction import RetentionPolicy
from infini.model.base_identity import FINGERPRINT
from infini.model.modules import window_layers
from infini.model.retrofit import remove, retrofit_known


@contextmanager
def retained_pairs(
    base: PreTrainedModel,
    policy: str | RetentionPolicy,
    window: int,
    sinks: int,
    retained: int,
) -> Iterator[PreTrainedModel]:
    """Read any text with a base, a sliding window with sinks and retained pairs, untrained.

    Args:
        base: The base; it is restored after the block.
        policy: Retention policy, a registered name or an object.
        window: Last tokens that are attended to.
        sinks: First tokens that are attended to.
        retained: Evicted pairs that a key-value head retains.

    Yields:
        `base`, retrofitted with `update="none"`: no matrix.

    Raises:
        InputError: No such policy, or an option that does not fit.
    """
    # Never saved: its identity is not needed
    unnamed = {"model": "", "revision": None, FINGERPRINT: ""}
    options: dict[str, Any] = {"window": window, "sinks": sinks, "update": "none"}
    retrofit_known(base, unnamed, "window", retained=retained, policy=policy, **options)
    try:
        yield base
    finally:
        remove(base)


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
        for layer in window_layers(model).values():
            assert layer.retained is not None
            for weight in layer.retained.policy_weights.values():
                weight.fill_(1)  # as if it were fitted: sizes do not depend on values
        return state_bytes(cache_after(model, tokens)).total


def retained_within(
    base: PreTrainedModel,
    policy: str | RetentionPolicy,
    window: int,
    sinks: int,
    state_bytes: int,
) -> int:
    """Return the largest number of retained pairs whose state is within a budget.

    State bytes are affine in the number of pairs: two small numbers are measured.

    Args:
        base: The base, without a memory; it is unchanged afterwards.
        policy: Retention policy, a registered name or an object; it need not be fitted.
        window: Tokens of the window.
        sinks: First tokens that are always attended to.
        state_bytes: The budget in bytes, for one text.

    Returns:
        Pairs that a key-value head retains; 0: the budget does not pay for one.

    Raises:
        InputError: No such policy, or an option that does not fit.
    """
    one, two = (policy_state_bytes(base, policy, window, sinks, k) for k in (1, 2))
    return max(0, 1 + (state_bytes - one) // (two - one))
