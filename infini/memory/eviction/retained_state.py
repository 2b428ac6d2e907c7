"""Retained pairs of a layer between two calls."""

from typing import NamedTuple

import torch
from torch import Tensor

from infini.memory.eviction.policy import RetentionPolicy


class RetainedState(NamedTuple):
    """Retained pairs of a layer between two calls; its size is constant."""

    keys: Tensor
    """Keys without positions: (B, G, K, D)"""
    values: Tensor
    """(B, G, K, V)"""
    positions: Tensor
    """Token positions from the start of the text, int64; -1: no pair: (B, G, K)"""
    policy_state: Tensor
    """The policy's n floats a pair, float32: (B, G, n, K + R), or (B, G, n, K)"""
    block_attention: Tensor
    """Attention received in the block that is not complete, float32: (B, G, K + R), or (B, G, 0)
    where the policy does not store it"""
    counts: Tensor
    """Pairs of every head, int64, where the heads share the K·G slots (`head_budgets`): (B, G);
    else (B, 0)"""

    @classmethod
    def empty(
        cls, k: Tensor, v: Tensor, num_retained: int, num_recent: int, policy: RetentionPolicy
    ) -> "RetainedState":
        """Return the state before the first token.

        Args:
            k: Keys, (B, G, ·, D), which give size, type and device.
            v: Values, (B, G, ·, V).
            num_retained: K.
            num_recent: R.
            policy: Decides which floats are stored per pair.
        """
        heads = k.shape[:2]
        num_state = num_retained + num_recent * policy.state_covers_window
        num_attention = (num_retained + num_recent) * policy.stores_attention
        return cls(
            k.new_zeros(*heads, num_retained, k.shape[3]),
            v.new_zeros(*heads, num_retained, v.shape[3]),
            torch.full((*heads, num_retained), -1, device=k.device),
            k.new_zeros(*heads, len(policy.state), num_state, dtype=torch.float32),
            k.new_zeros(*heads, num_attention, dtype=torch.float32),
            k.new_zeros(heads[0], heads[1] * (policy.min_share is not None), dtype=torch.int64),
        )
