"""Selection of the key-value pairs that stay behind the window, for any retention policy.

At the end of a block, for every key-value head on its own (or for all heads of a layer, where they
share their pairs, `min_share`):

    candidates ← the K retained pairs and those that have left the window
    retained   ← the K candidates of the highest rank, in order of position
    rank       = score + max(0, bias - BIAS_THRESHOLD)

with the policy's score and the learned bias, `RetainedPairs.pair_bias`. Biases below the
threshold, which is where our trainings end, do not change the selection. A pair is dropped if its
distance to the next block's last query would reach the base's context or its own sliding window,
so that the base meets no distance that it was not trained on. Pairs of pinned tokens rank first
and are not dropped (`pinned`).

Attention weights are computed only for a policy that asks for them: softmax of q·k over all that
a query attends to, without the learned bias, without the base's soft cap. They are accumulated
over the calls that read a block, query by query, so the result does not depend on how the text is
split into calls.

Shapes: B batch, H query heads, G key-value heads, r = H / G, D key width, V value width, S sinks,
N blocks of C queries, K retained pairs, R = W + C - 2 recent ones, T new ones, P = K + R + T pairs
of a call, of which a block's end sees K + W - 1 + C (the P of `policy.HeldPairs`).
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.errors import InputError
from infini.memory.eviction.attention_weights import (
    AttentionWeights,
    BlockWeights,
    add_attention,
)
from infini.memory.eviction.block_layout import BlockLayout
from infini.memory.eviction.call_pairs import CallPairs, LayerPolicy, PairGatherer
from infini.memory.eviction.head_budgets import best_of_layer, num_empty
from infini.memory.eviction.pinned import PinnedPairs
from infini.memory.eviction.policy import HeldPairs, RetentionPolicy
from infini.memory.eviction.retained_state import RetainedState

BIAS_THRESHOLD = 0.5  # logits


class Selection(NamedTuple):
    """Pairs that every block attends to, by index among the P, and the state after the call."""

    indices: Tensor  # (B, G, N + 1, K): the last for the tokens to come
    valid: Tensor  # whether there is a pair: (B, G, N + 1, K)
    positions: Tensor  # as in RetainedState, like the rest
    policy_state: Tensor
    block_attention: Tensor
    counts: Tensor


@torch.no_grad()
def select(
    queries: tuple[Tensor, Tensor] | BlockWeights,
    pairs: CallPairs,
    key_bias: Tensor,
    state: RetainedState,
    layout: BlockLayout,
    layer_policy: LayerPolicy,
) -> Selection:
    """Select the retained pairs block by block.

    Args:
        queries: Scaled queries, (B, H, T, D), twice: rotated for window and retained pairs, and
            rotated for sinks. Or a `BlockWeights`, which computes the attention weights.
        pairs: All pairs of the call.
        key_bias: Learned bias of every pair, logits: (B, G, P).
        state: State before the call.
        layout: Blocks of the new tokens.
        layer_policy: Scores the pairs.

    Returns:
        The selection; it has no gradient.
    """
    K = state.positions.shape[2]
    with torch.autocast(key_bias.device.type, enabled=False):
        weights = None
        if not isinstance(queries, tuple):
            weights = queries
        elif layer_policy.policy.attention is not None:
            weights = AttentionWeights(queries, pairs, layout, K)
        selector = _BlockSelector(weights, pairs, key_bias, state, layout, layer_policy)
        selected = [selector.slots]
        for block in range(layout.num_blocks):
            selector.read(block)
            selector.end(block)
            selected.append(selector.slots)
    positions = selector.slots.positions.masked_fill(~selector.slots.valid, -1)
    return Selection(
        torch.stack([slots.indices for slots in selected], 2),
        torch.stack([slots.valid for slots in selected], 2),
        positions,
        *_from_blocks(selector.policy_state, selector.attention, layout, layer_policy.policy, K),
        state.counts,
    )


class _Slots(NamedTuple):
    """Slots of every head: the retained pairs, at the end of a block followed by its window."""

    positions: Tensor  # token positions: (B, G, K) or (B, G, K + W - 1 + C), like the rest
    indices: Tensor  # among the P pairs of the call
    valid: Tensor  # whether there is a pair


class _BlockSelector:
    """Selects pairs block by block: `read` a block, then `end` it.

    Args:
        weights: Attention weights; None: neither the policy nor the caller needs them.
        pairs: All pairs of the call.
        key_bias: Learned bias of every pair, (B, G, P).
        state: State before the call.
        layout: Blocks of the new tokens.
        layer_policy: Scores the pairs.
    """

    def __init__(
        self,
        weights: BlockWeights | None,
        pairs: CallPairs,
        key_bias: Tensor,
        state: RetainedState,
        layout: BlockLayout,
        layer_policy: LayerPolicy,
    ):
        self.weights, self.pairs, self.layout = weights, pairs, layout
        self.layer_policy, self.policy = layer_policy, layer_policy.policy
        self.gatherer = PairGatherer(pairs, layer_policy, layout)
        self.rank_bias = (key_bias.float() - BIAS_THRESHOLD).clamp(min=0)  # (B, G, P)
        indices = torch.arange(state.positions.shape[2], device=key_bias.device)
        indices = indices.expand(state.positions.shape)
        self.slots = _Slots(state.positions, indices, _are_pairs(state, pairs.pinned))
        # The policy's floats, and the attention received so far in the block. One entry per
        # retained pair and token of the block's window: (B, G, n, K + W - 1 + C)
        self.policy_state, self.attention = _to_blocks(state, layout, self.policy)

    def read(self, block: int) -> None:
        """Compute what the block's queries pay to the pairs, if anybody asks for it."""
        queries = self.layout.scored_queries(block, self.policy.last_queries)
        if self.weights is None or not (queries or self.weights.in_all_blocks):
            return
        _, indices, valid = self.slots
        skip = num_empty(valid, self.policy.min_share)
        received = self.weights.of_block(block, indices[..., skip:], valid[..., skip:], queries)
        if self.policy.attention is not None and queries:
            received = F.pad(received, (skip, 0)) if skip else received
            self.attention = add_attention(self.policy, self.attention, received)

    def end(self, block: int) -> None:
        """Keep the best pairs, if the call has the block's last token."""
        layout, pinned, is_end = self.layout, self.pairs.pinned, self.layout.is_block_end(block)
        if not is_end and (pinned is None or not layout.fills_window(block)):
            return
        slots = self._with_window(block)
        held = self._held_pairs(slots, block)
        scores = torch.full(slots.positions.shape, -torch.inf, device=slots.positions.device)
        if is_end:
            scores = _scores(self.policy, held)
        ranks = scores + self.rank_bias.gather(2, slots.indices)
        candidates = _Slots(*(x[..., : held.num_candidates] for x in slots))
        first = layout.first_reachable(block + 1)
        ranks = _limit_ranks(ranks[..., : held.num_candidates], candidates, first, pinned)
        order, valid = _best(ranks, self.slots.valid.shape[2], self.layer_policy)
        positions, indices = (x.gather(2, order) for x in candidates[:2])
        self.slots = _Slots(positions, indices, valid)
        if is_end:
            self.policy_state = _next_state(self.policy, held, order, valid)
        self.attention = torch.zeros_like(self.attention)

    def _with_window(self, block: int) -> _Slots:
        """Return the slots followed by the window of a block."""
        layout, (positions, indices, valid) = self.layout, self.slots
        window = torch.arange(layout.window_width, device=positions.device)
        window = window + layout.block_start(block) - layout.window + 1  # positions
        window = window.expand(*positions.shape[:2], -1)
        first = self.rank_bias.shape[2] - layout.end  # index of position 0
        return _Slots(
            torch.cat([positions, window], 2),
            torch.cat([indices, window + first], 2),
            torch.cat([valid, window >= layout.sinks], 2),
        )

    def _held_pairs(self, slots: _Slots, block: int) -> HeldPairs:
        """Return what the policy sees at the end of a block."""
        layout, policy = self.layout, self.policy
        return HeldPairs(
            positions=slots.positions.masked_fill(~slots.valid, -1),
            valid=slots.valid,
            layer_index=self.layer_policy.layer_index,
            num_retained=self.slots.valid.shape[2],
            block_start=layout.block_start(block),
            block_size=layout.block_size,
            scoring_start=layout.window + layout.sinks,
            block_attention=None if policy.attention is None else self.attention,
            state=dict(zip(policy.state, self.policy_state.unbind(2), strict=True)),
            weights=self.layer_policy.weights,
            gather=partial(self.gatherer.gather, block, slots.indices, slots.valid),
        )


def _are_pairs(state: RetainedState, pinned: PinnedPairs | None) -> Tensor:
    """Return which slots hold a pair: (B, G, K); none do where no pair is in reach.

    Only one pair can be out of reach: the pinned token S of a text of W + S tokens that the base
    itself has read.
    """
    valid = state.positions >= 0
    return valid if pinned is None or pinned.in_reach else torch.zeros_like(valid)


def _limit_ranks(
    ranks: Tensor,
    candidates: _Slots,
    first_position: int | None,
    pinned: PinnedPairs | None,
) -> Tensor:
    """Return the ranks of the candidates, -inf where none is within reach, inf for pinned ones.

    Args:
        ranks: (B, G, K + C).
        candidates: Retained pairs, and those that have left the window.
        first_position: Candidates before it are out of reach; None: none are.
        pinned: Pinned tokens; None: there are none.
    """
    positions, _, valid = candidates
    within = valid if first_position is None else valid & (positions >= first_position)
    ranks = ranks.where(within, -torch.inf)
    if pinned is None:
        return ranks
    return ranks.masked_fill(valid & pinned.contains(positions), torch.inf)


def _best(ranks: Tensor, num_slots: int, layer_policy: LayerPolicy) -> tuple[Tensor, Tensor]:
    """Return the best candidates in order of position, empty slots first.

    Args:
        ranks: (B, G, slots + C); -inf: there is none.
        num_slots: Slots of a head: K, or more where the heads share their pairs.
        layer_policy: The policy, with K.

    Returns:
        Their indices among the candidates, (B, G, slots), and whether there is one.
    """
    min_share = layer_policy.policy.min_share
    if min_share is not None:
        ranks = best_of_layer(ranks, layer_policy.num_retained or num_slots, min_share)
    best, order = ranks.topk(num_slots, -1)
    order = order.masked_fill(best == -torch.inf, -1).sort(-1).values
    return order.clamp(min=0), order >= 0


def _to_blocks(
    state: RetainedState, layout: BlockLayout, policy: RetentionPolicy
) -> tuple[Tensor, Tensor]:
    """Return the policy's state, (B, G, n, K + W - 1 + C), and the attention, likewise."""
    K = state.positions.shape[2]
    policy_state, attention = state.policy_state, state.block_attention
    if not policy.stores_attention:
        attention = F.pad(attention, (0, K + layout.window_width))
    else:
        attention = layout.to_blocks(attention, K)
    if policy.state_covers_window:
        policy_state = layout.to_blocks(policy_state, K)
    else:
        policy_state = F.pad(policy_state, (0, layout.window_width))
    return policy_state, attention


def _from_blocks(
    policy_state: Tensor, attention: Tensor, layout: BlockLayout, policy: RetentionPolicy, K: int
) -> tuple[Tensor, Tensor]:
    """Return the policy's state and the attention as `RetainedState` has them, after a call."""
    attention = layout.from_blocks(attention, K) if policy.stores_attention else attention[..., :0]
    if policy.state_covers_window:
        return layout.from_blocks(policy_state, K), attention
    return policy_state[..., :K].clone(), attention  # not a view of all


def _scores(policy: RetentionPolicy, held: HeldPairs) -> Tensor:
    """Return the policy's scores, (B, G, K + W - 1 + C), floating point and below infinity.

    Raises:
        InputError: They are no tensor of real numbers, have another shape, one of a candidate is
            NaN, or the policy's tensors have not been fitted.
    """
    if policy.needs_fit and not any(x.any() for x in held.weights.values()):
        raise InputError(
            f"policy {policy.name!r} must be fitted to texts first: infini.fit_policy(model, texts)"
        )
    scores = policy.score(held)
    if not isinstance(scores, Tensor):
        raise InputError(
            f"policy {policy.name!r}: score must return a tensor, got a {type(scores).__name__}"
        )
    if scores.shape != held.positions.shape:
        expected, got = tuple(held.positions.shape), tuple(scores.shape)
        raise InputError(f"policy {policy.name!r}: score must return {expected}, got {got}")
    if scores.is_complex():
        raise InputError(
            f"policy {policy.name!r}: score must return real numbers, got complex ones"
        )
    if not scores.is_floating_point():
        scores = scores.double()
    n = held.num_candidates
    if (scores[..., :n].isnan() & held.valid[..., :n]).any():
        raise InputError(f"policy {policy.name!r}: score must return numbers, got NaN for a pair")
    return scores.clamp(max=torch.finfo(scores.dtype).max)  # inf is for pinned pairs


def _next_state(policy: RetentionPolicy, held: HeldPairs, order: Tensor, valid: Tensor) -> Tensor:
    """Return the policy's state at the start of the next block: (B, G, n, K + W - 1 + C).

    order: the selected among the candidates, (B, G, K); valid: where there is one.
    """
    in_window = held.num_candidates if policy.state_covers_window else held.positions.shape[2]
    own = held.positions.new_zeros(*held.positions.shape[:2], 0, held.positions.shape[2]).float()
    for name in policy.state:
        value = held.state[name]
        if not isinstance(value, Tensor) or value.shape != held.positions.shape:
            expected = tuple(held.positions.shape)
            raise InputError(f"policy {policy.name!r}: state {name!r} must be a tensor, {expected}")
    if policy.state:
        own = torch.stack([held.state[name].float() for name in policy.state], 2)
    order = order[:, :, None].expand(-1, -1, own.shape[2], -1)
    selected = own.gather(3, order).where(valid[:, :, None], 0)
    window = own[..., in_window:]
    missing = own.shape[3] - selected.shape[3] - window.shape[3]
    return torch.cat([selected, F.pad(window, (0, missing))], 3)
