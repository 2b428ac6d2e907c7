"""Attention to sinks, to a window, and to pairs behind it that stay exact.

A token of the block that begins with token b sees the S sinks, the K pairs that `eviction` keeps
during the block, and the tokens b - W < j ≤ t. Which pairs are kept carries no gradient, what is
read from them does.

Shapes: B batch, H query heads, G key-value heads, T new tokens, D key width, V value width, N
blocks of C queries, P pairs in all: K kept, R = W + C - 2 recent ones, T new ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infini.choices import MemoryUse
from infini.memory.eviction import Choice, KeptState, Sight, choose
from infini.memory.packing import swap_halves

Rotate = Callable[[Tensor, Tensor], Tensor]  # (B, H, T, D) and positions, (B or 1, T)
Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class KeptPairs(nn.Module):
    """What a layer learns of its kept pairs: how much a query head favours them, in logits."""

    use: MemoryUse = "own"  # see `infini.model.reading`

    def __init__(self, heads: int, count: int):
        super().__init__()
        self.count = count
        self.bias = nn.Parameter(torch.zeros(heads))


def _gather(x: Tensor, places: Tensor) -> Tensor:
    """(B, G, P, D), places (B, G, …) → (B, G, …, D)."""
    index = places.flatten(2)[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, index).unflatten(2, places.shape[2:])


class Pairs(NamedTuple):
    """All that a layer holds during a call, or has just read."""

    keys: Tensor  # without positions: kept, recent, new: (B, G, P, D)
    values: Tensor  # (B, G, P, V)
    sink_keys: Tensor  # (B, G, S, D)
    sink_values: Tensor  # (B, G, S, V)


class Reader(NamedTuple):
    """How a base attends."""

    attention: Attention
    rotate: Rotate | None  # gives q and k their positions; None: they have none, or have them
    scale: float  # of q·k


def kept_attention(
    q: Tensor, pairs: Pairs, state: KeptState, sight: Sight, reader: Reader, kept: KeptPairs
) -> tuple[Tensor, KeptState]:
    """Every new token's attention to sinks, kept pairs and window, (B, T, H, V); the state after.

    q: (B, H, T, D), without positions.
    """
    K, scale = state.keys.shape[2], reader.scale
    near, far, keys, sink_keys = _rotated(q, pairs, state, sight, reader.rotate)
    choice = choose(near * scale, far * scale, keys, sink_keys, state, sight)
    places, there = choice.places[:, :, :-1], choice.there[:, :, :-1]
    chosen_keys, chosen_values = _gather(keys, places), _gather(pairs.values, places)
    if kept.use == "off":
        there = torch.zeros_like(there)
    elif kept.use == "swapped":
        chosen_keys, chosen_values, there = map(swap_halves, (chosen_keys, chosen_values, there))
    # A score is q·k of the window and the kept, or of the sinks: each beside zeros of the other.
    # Two more columns: a head's favour for the kept, and none at all where no pair is.
    favour = kept.bias[None, :, None, None].expand(*near.shape[:3], 1)
    asked = torch.cat([near, far, favour.to(near.dtype), torch.ones_like(near[..., :1])], -1)
    none = torch.where(there, 0.0, -1e4)[..., None] / scale
    marks = torch.cat([torch.full_like(none, 1 / scale), none], -1).to(keys.dtype)
    width = keys.shape[3]
    of_kept = torch.cat([F.pad(chosen_keys, (0, width)), marks], -1)  # (B, G, N, K, 2 D + 2)
    of_window = sight.windows(F.pad(keys[:, :, K:], (0, width + 2)))
    of_sinks = F.pad(sink_keys, (width, 2))[:, :, None].expand(-1, -1, sight.blocks, -1, -1)
    values = (
        pairs.sink_values[:, :, None].expand(-1, -1, sight.blocks, -1, -1),
        chosen_values,
        sight.windows(pairs.values[:, :, K:]),
    )
    out = reader.attention(
        _to_rows(sight.by_block(asked)),
        _to_rows(torch.cat([of_sinks, of_kept, of_window], 3)),
        _to_rows(torch.cat(values, 3)),
        _mask(sight, len(q), K, q.device),
    )  # (B·N, C, H, V)
    out = out.unflatten(0, (-1, sight.blocks)).flatten(1, 2)
    return out[:, sight.begun : sight.begun + sight.tokens], _after(choice, pairs, state, sight)


def _rotated(
    q: Tensor, pairs: Pairs, state: KeptState, sight: Sight, rotate: Rotate | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries as window and sinks are seen, all keys, the sinks' keys; counted from the call on."""
    if rotate is None:
        return q, q, pairs.keys, pairs.sink_keys
    (B, G, P, _), S = pairs.keys.shape, sight.sinks
    here = torch.arange(sight.tokens, device=q.device)[None]
    places = sight.numbers(state.positions, P, P - sight.tokens) - sight.count
    keys = rotate(pairs.keys.flatten(0, 1)[:, None], places.flatten(0, 1))
    far = (here + sight.count).clamp(max=sight.window + S - 1)
    sinks = rotate(pairs.sink_keys, torch.arange(S, device=q.device)[None])
    return rotate(q, here), rotate(q, far), keys[:, 0].unflatten(0, (B, G)), sinks


def _to_rows(x: Tensor) -> Tensor:
    """(B, H, N, n, ·) → (B·N, H, n, ·)."""
    return x.transpose(1, 2).flatten(0, 1)


def _mask(sight: Sight, batch: int, kept: int, device: torch.device) -> Tensor:
    """(B·N, 1, C, S + K + W - 1 + C), True where a query may look."""
    sinks = sight.seen_sinks(device)
    pairs = torch.ones(*sinks.shape[:2], kept, dtype=torch.bool, device=device)
    mask = torch.cat([sinks, pairs, sight.seen(device)], -1)
    return mask[None].expand(batch, -1, -1, -1).flatten(0, 1)[:, None]


def _after(choice: Choice, pairs: Pairs, state: KeptState, sight: Sight) -> KeptState:
    """For the tokens to come."""
    P, K = pairs.keys.shape[2], state.keys.shape[2]
    recents = P - K - sight.tokens
    places, there = choice.places[:, :, -1], choice.there[:, :, -1]
    numbers = sight.numbers(state.positions, P, P - sight.tokens)
    positions = numbers.gather(2, places).masked_fill(~there, -1)
    real = there[..., None].to(pairs.keys.dtype)

    def figures(x: Tensor) -> Tensor:
        return torch.cat([x.gather(2, places) * there, x[:, :, P - recents :]], 2)

    return KeptState(
        _gather(pairs.keys, places) * real,
        _gather(pairs.values, places) * real,
        positions,
        figures(choice.scores),
        figures(choice.attention),
    )
