"""All key-value pairs of a call, and what a retention policy sees of them (`HeldPairs`).

Shapes: B batch, G key-value heads, D key width, V value width, S sinks, W window, blocks of C
queries, K retained pairs, R recent ones, T new ones, P = K + R + T.
"""

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from infini.memory.eviction.block_layout import BlockLayout
from infini.memory.eviction.pinned import PinnedPairs
from infini.memory.eviction.policy import RetentionPolicy
from infini.memory.eviction.query_statistics import Rotate


class CallPairs(NamedTuple):
    """All key-value pairs of a call: K retained, R recent, T new ones."""

    keys: Tensor
    """Keys without positions: (B, G, P, D)"""
    rotated_keys: Tensor
    """Keys with positions: (B, G, P, D)"""
    values: Tensor
    """(B, G, P, V)"""
    sink_keys: Tensor
    """Keys of the sinks with positions: (B, G, S, D)"""
    pinned: PinnedPairs | None = None
    """Pinned tokens; None: there are none"""


class LayerPolicy(NamedTuple):
    """A retention policy with what it needs of a layer."""

    policy: RetentionPolicy
    layer_index: int = 0
    """Decoder layer, from 0"""
    weights: Mapping[str, Tensor] = MappingProxyType({})
    """The policy's fitted tensors, by name"""
    rotate: Rotate | None = None
    """Gives keys their positions; None: they have none"""
    num_retained: int | None = None
    """Pairs of a head on average, K, where the state has more slots (`head_budgets`)"""


class PairGatherer:
    """Gathers the tensors of `HeldPairs` by name.

    Args:
        pairs: All pairs of the call.
        layer_policy: The policy, for the scores that it asks for.
        layout: Blocks of the new tokens.
    """

    def __init__(self, pairs: CallPairs, layer_policy: LayerPolicy, layout: BlockLayout):
        self.pairs, self.layout = pairs, layout
        self.policy, self.weights = layer_policy.policy, layer_policy.weights
        self.rotate = layer_policy.rotate

    def gather(self, block: int, indices: Tensor, valid: Tensor, name: str) -> Tensor:
        """Return a tensor of `HeldPairs`, float32.

        Args:
            block: Block at whose end the policy scores.
            indices: The pairs held there, among the P: (B, G, K + W - 1 + C).
            valid: Where there is one.
            name: As in `HeldPairs.gather`.

        Returns:
            (B, G, K + W - 1 + C) of `pair_scores`, (B, G, K + W - 1 + C, ·) of keys and values.
        """
        pinned = self.pairs.pinned
        if name == "pair_scores":
            return self.pair_scores.gather(2, indices)
        x: Tensor = getattr(self.pairs, name.replace("relative", "rotated"))
        index = indices[..., None].expand(-1, -1, -1, x.shape[3])
        x = x.gather(2, index).float().where(valid[..., None], 0)
        if name in ("rotated_keys", "relative_keys") and pinned is not None:
            K = indices.shape[2] - self.layout.window_width
            retained = pinned.move_closer(x[:, :, :K], block, indices[:, :, :K])
            x = torch.cat([retained.where(valid[:, :, :K, None], 0), x[:, :, K:]], 2)
        if name != "relative_keys" or self.rotate is None:
            return x
        # counted from the call's first token
        end = self.layout.block_start(block + 1) - self.layout.num_past
        return self.rotate(x, torch.full((1, 1), -end, device=x.device))

    @cached_property
    def pair_scores(self) -> Tensor:
        """`RetentionPolicy.pair_score` of all pairs: (B, G, P)."""
        keys, values = self.pairs.keys.float(), self.pairs.values.float()
        return self.policy.pair_score(keys, values, self.weights)
