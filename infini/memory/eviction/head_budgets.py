"""Adaptive budgets: the key-value heads of a layer share their K·G retained pairs (AdaKV).

Every head keeps the best max(1, share · K) of its pairs; the rest of the K·G are the best of all
heads. Between two calls the state has K·G slots, with one head's pairs after the other's. A call
needs the same number of slots for every head: as many as the head with the most pairs.

Ada-KV (arXiv 2407.11550, algorithm 1), at the end of every block.

Shapes: B batch, G key-value heads, K pairs of a head on average, R recent tokens.
"""

import torch
from torch import Tensor

from infini.memory.eviction.block_layout import BlockLayout
from infini.memory.eviction.retained_state import RetainedState


def best_of_layer(ranks: Tensor, num_retained: int, min_share: float) -> Tensor:
    """Set the ranks of the pairs that do not stay to -inf.

    Args:
        ranks: Ranks of the candidates, -inf for none, (B, G, n).
        num_retained: K.
        min_share: Share of K that every head keeps.

    Returns:
        The ranks, (B, G, n).
    """
    num_best = min(num_retained * ranks.shape[1], ranks[0].numel())
    own_best = ranks.topk(_min_pairs(num_retained, min_share), -1).indices
    ensured = torch.zeros_like(ranks, dtype=torch.bool).scatter_(2, own_best, True)
    best = ranks.masked_fill(ensured & (ranks > -torch.inf), torch.inf).flatten(1).topk(num_best)
    stays = torch.zeros_like(ensured).flatten(1).scatter_(1, best.indices, True)
    return ranks.where(stays.view_as(ranks), -torch.inf)


def num_slots(state: RetainedState, layout: BlockLayout, min_share: float) -> int:
    """Return the slots of a head that a call needs, at least K."""
    _, G, K = state.positions.shape
    num_block_ends = sum(map(layout.is_block_end, range(layout.num_blocks)))
    num_largest = int(state.counts.max()) + num_block_ends * layout.block_size
    return max(K, min(num_largest, G * K - (G - 1) * _min_pairs(K, min_share)))


def num_empty(valid: Tensor, min_share: float | None) -> int:
    """Return how many slots, from the first on, are empty in all heads; they need not be read.

    Args:
        valid: Whether a slot holds a pair, (…, slots); the empty ones come first.
        min_share: As above; None: the heads do not share their pairs, and 0 is returned.
    """
    return 0 if min_share is None else int((~valid).sum(-1).min())


def unpack(state: RetainedState, slots: int) -> RetainedState:
    """Give every head its own slots, empty ones first.

    Args:
        state: Packed state, (B, G, K, ·).
        slots: Slots of a head.

    Returns:
        The state, (B, G, slots, ·).
    """
    _, G, K = state.positions.shape
    counts = state.counts
    number = torch.arange(slots, device=counts.device) - slots + counts[..., None]
    first = G * K - counts.sum(1, keepdim=True) + counts.cumsum(1) - counts  # (B, G)
    return _move(state, first[..., None] + number, number >= 0)


def pack(state: RetainedState, num_retained: int) -> RetainedState:
    """Put the pairs of all heads into K·G slots, empty ones first; the inverse of `unpack`."""
    valid = state.positions >= 0
    G = valid.shape[1]
    order = valid.flatten(1).long().argsort(dim=1, stable=True)[:, -G * num_retained :]
    is_pair = valid.flatten(1).gather(1, order)
    state = _move(state, *(x.unflatten(1, (G, num_retained)) for x in (order, is_pair)))
    return state._replace(counts=valid.sum(2))


def _move(state: RetainedState, index: Tensor, is_pair: Tensor) -> RetainedState:
    """Move pairs between slots.

    Args:
        state: State with m slots a head.
        index: Old slot of every new one, counted over all heads, (B, G, n).
        is_pair: False: the new slot is empty, (B, G, n).

    Returns:
        The state with n slots a head.
    """
    index = (index * is_pair).flatten(1)[..., None]
    num_old = state.positions.shape[2]

    def move(x: Tensor) -> Tensor:  # (B, G, m, D) → (B, G, n, D)
        moved = x.flatten(1, 2).gather(1, index.expand(-1, -1, x.shape[3]))
        return moved.unflatten(1, is_pair.shape[1:]) * is_pair[..., None]

    def move_floats(x: Tensor) -> Tensor:  # (B, G, …, m + R) → (B, G, …, n + R)
        return torch.cat([move(x[..., :num_old].mT).mT, x[..., num_old:]], 3)

    attention = state.block_attention
    return state._replace(
        keys=move(state.keys),
        values=move(state.values),
        positions=move(state.positions[..., None] + 1)[..., 0] - 1,
        policy_state=move_floats(state.policy_state),
        block_attention=move_floats(attention[:, :, None])[:, :, 0]
        if attention.shape[2]
        else attention,
    )


def _min_pairs(num_retained: int, min_share: float) -> int:
    """Return how many pairs every head keeps."""
    return max(1, int(min_share * num_retained))
