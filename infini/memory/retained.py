"""Attention to sinks, to a window, and to pairs behind it that stay exact.

A token of the block that begins with token b sees the S sinks, the K pairs that `eviction` keeps
during the block, and the tokens b - W < j ≤ t. Which pairs are kept carries no gradient, what is
read from them does: it also teaches which to favour, and what is favoured stays longer.

Shapes: B batch, H query heads, G key-value heads, T new tokens, D key width, V value width, N
blocks of C queries, P pairs in all: K kept, R = W + C - 2 recent ones, T new ones.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infini.choices import MemoryMode
from infini.memory.eviction import Choice, RetainedState, Sight, choose, recent
from infini.memory.packing import swap_halves
from infini.memory.window import Attention, Rotate, Span

NONE = -1e4  # a score of what is not there


class RetainedPairs(nn.Module):
    """What a layer learns of its kept pairs: how much it favours them, in logits.

    A query head all of them alike, a key-value head each by its value: unlike keys, values have
    little in common that would be favoured with whatever is.
    """

    use: MemoryMode = "own"  # see `infini.model.forward`

    def __init__(self, heads: int, kv_heads: int, width: int, count: int):
        super().__init__()
        self.count = count
        self.bias = nn.Parameter(torch.zeros(heads))
        self.weight = nn.Parameter(torch.zeros(kv_heads, width))

    def favours(self, v: Tensor) -> Tensor:
        """(B, G, P), of values, (B, G, P, V), whatever their length."""
        with torch.autocast(v.device.type, enabled=False):
            v = F.normalize(v.float(), dim=-1) * v.shape[-1] ** 0.5
            return torch.einsum("bgpv,gv->bgp", v, self.weight.float())


def _gather(x: Tensor, places: Tensor) -> Tensor:
    """(B, G, P, D), places (B, G, …) → (B, G, …, D)."""
    index = places.flatten(2)[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, index).unflatten(2, places.shape[2:])


class Pairs(NamedTuple):
    """What a layer holds beside the kept, keys without positions."""

    keys: Tensor  # recent and new: (B, G, R + T, D)
    values: Tensor  # (B, G, R + T, V)
    sink_keys: Tensor  # new ones included: (B, G, S, D)
    sink_values: Tensor  # (B, G, S, V)


class Reader(NamedTuple):
    """How a base attends."""

    attention: Attention
    rotate: Rotate | None  # gives q and k their positions; None: they have none, or have them
    scale: float  # of q·k
    context: int | None = None  # in tokens; None: any
    limit: int | None = None  # its own window, in tokens, where it has one


def retained_attention(
    q: Tensor, pairs: Pairs, state: RetainedState, span: Span, reader: Reader, kept: RetainedPairs
) -> tuple[Tensor, RetainedState]:
    """Every new token's attention to sinks, kept pairs and window, (B, T, H, V); the state after.

    q: (B, H, T, D), without positions.
    """
    reach = min((x for x in (reader.context, reader.limit) if x is not None), default=None)
    alike: dict[Sight, list[int]] = {}  # samples of the same blocks
    for sample, tokens in enumerate(zip(span.counts.tolist(), span.lengths.tolist(), strict=True)):
        sight = Sight(*tokens, span.window, span.sinks, reach, reader.limit)
        alike.setdefault(sight, []).append(sample)
    if len(alike) == 1:
        return _in_steps(q, pairs, state, sight, reader, kept)
    done = []
    for sight, samples in alike.items():
        rows = torch.tensor(samples, device=q.device)
        some, before = Pairs(*(x[rows] for x in pairs)), RetainedState(*(x[rows] for x in state))
        done.append(_in_steps(q[rows], some, before, sight, reader, kept))
    order = [sample for samples in alike.values() for sample in samples]
    back = torch.tensor(order, device=q.device).argsort()
    outs, states = zip(*done, strict=True)
    after = (torch.cat(x)[back] for x in zip(*states, strict=True))
    return torch.cat(outs)[back], RetainedState(*after)


def _in_steps(
    q: Tensor, pairs: Pairs, state: RetainedState, sight: Sight, reader: Reader, kept: RetainedPairs
) -> tuple[Tensor, RetainedState]:
    """The same of samples alike, no more tokens at once than the base has positions for."""
    step = max(1, sight.tokens if reader.rotate is None else reader.context or sight.tokens)
    outs = []
    for start in range(0, sight.tokens, step):
        end = min(start + step, sight.tokens)
        keys, values = (x[:, :, start : end + recent(sight.window)] for x in pairs[:2])
        some = pairs._replace(keys=keys, values=values)
        part = replace(sight, count=sight.count + start, tokens=end - start)
        out, state = _attend(q[:, :, start:end], some, state, part, reader, kept)
        outs.append(out)
    none = q.new_zeros(len(q), 0, q.shape[1], pairs.values.shape[3])
    out = torch.cat(outs, 1) if outs else none
    return F.pad(out, (0, 0, 0, 0, 0, q.shape[2] - sight.tokens)), state


def _attend(
    q: Tensor, pairs: Pairs, state: RetainedState, sight: Sight, reader: Reader, kept: RetainedPairs
) -> tuple[Tensor, RetainedState]:
    K, N, scale = state.keys.shape[2], sight.blocks, reader.scale
    near, far, keys, sink_keys = _rotated(q, pairs, state, sight, reader.rotate)
    values = torch.cat([state.values, pairs.values], 2)
    favours = kept.favours(values)  # (B, G, P)
    scaled = near * scale, far * scale
    choice = choose(scaled, keys, sink_keys, favours, state, sight)
    if torch.is_autocast_enabled(q.device.type):  # as the attention will have them, but sooner
        product = torch.get_autocast_dtype(q.device.type)
        near, far, keys, sink_keys = (x.to(product) for x in (near, far, keys, sink_keys))
    places, there = choice.places[:, :, :-1], choice.there[:, :, :-1]
    chosen_keys, chosen_values = _gather(keys, places), _gather(values, places)
    favoured = favours.gather(2, places.flatten(2)).view(places.shape)  # (B, G, N, K)
    if kept.use == "off":
        there = torch.zeros_like(there)
    elif kept.use == "swapped":
        chosen = chosen_keys, chosen_values, favoured, there
        chosen_keys, chosen_values, favoured, there = map(swap_halves, chosen)
    # A score is q·k of the window and the kept, or of the sinks: each beside zeros of the other.
    # Two more columns: a head's favour for all kept, and a pair's own, or none at all where no
    # pair is. And as many zeros as make their number one that fused kernels take.
    width = keys.shape[3]
    zeros = -(2 * width + 2) % 8
    head_favour = kept.bias[None, :, None, None].expand(*near.shape[:3], 1).to(near.dtype)
    asked = F.pad(torch.cat([near, far, head_favour, torch.ones_like(head_favour)], -1), (0, zeros))
    none = max(NONE / scale, torch.finfo(keys.dtype).min)
    own = torch.where(there, favoured / scale, none)[..., None].to(keys.dtype)
    marks = torch.cat([torch.full_like(own, 1 / scale), own], -1)
    all_keys = (
        _to_each(F.pad(sink_keys, (width, 2 + zeros)), N),
        torch.cat([F.pad(chosen_keys, (0, width)), F.pad(marks, (0, zeros))], -1),
        sight.windows(F.pad(keys[:, :, K:], (0, width + 2 + zeros))),
    )  # (B, G, N, S or K or W - 1 + C, ·)
    all_values = _to_each(pairs.sink_values, N), chosen_values, sight.windows(pairs.values)
    out = reader.attention(
        _to_rows(sight.by_block(asked)),
        _to_rows(torch.cat(all_keys, 3)),
        _to_rows(torch.cat(all_values, 3)),
        _mask(sight, len(q), K, q.device),
    )  # (B·N, C, H, V)
    out = out.unflatten(0, (-1, N)).flatten(1, 2)[:, sight.begun : sight.begun + sight.tokens]
    return out, _after(choice, torch.cat([state.keys, pairs.keys], 2), values)


def _rotated(
    q: Tensor, pairs: Pairs, state: RetainedState, sight: Sight, rotate: Rotate | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries as window and sinks are seen, all keys, the sinks' keys; counted from the call on."""
    if rotate is None:
        return q, q, torch.cat([state.keys, pairs.keys], 2), pairs.sink_keys
    here = torch.arange(-recent(sight.window), sight.tokens, device=q.device)[None]
    new = here[:, -sight.tokens :]
    far = (new + sight.count).clamp(max=sight.window + sight.sinks - 1)
    back = (state.positions - sight.count).masked_fill(state.positions < 0, 0)
    kept = rotate(state.keys.flatten(0, 1)[:, None], back.flatten(0, 1)).view_as(state.keys)
    keys = torch.cat([kept, rotate(pairs.keys, here)], 2)
    sinks = rotate(pairs.sink_keys, torch.arange(sight.sinks, device=q.device)[None])
    return rotate(q, new), rotate(q, far), keys, sinks


def _to_each(x: Tensor, blocks: int) -> Tensor:
    """(B, G, S, D) → (B, G, N, S, D)."""
    return x[:, :, None].expand(-1, -1, blocks, -1, -1)


def _to_rows(x: Tensor) -> Tensor:
    """(B, H, N, n, ·) → (B·N, H, n, ·)."""
    return x.transpose(1, 2).flatten(0, 1)


def _mask(sight: Sight, batch: int, kept: int, device: torch.device) -> Tensor:
    """(B·N, 1, C, S + K + W - 1 + C), True where a query may look."""
    sinks = sight.seen_sinks(device)
    pairs = torch.ones(*sinks.shape[:2], kept, dtype=torch.bool, device=device)
    mask = torch.cat([sinks, pairs, sight.seen(device)], -1)
    return mask[None].expand(batch, -1, -1, -1).flatten(0, 1)[:, None]


def _after(choice: Choice, keys: Tensor, values: Tensor) -> RetainedState:
    """For the tokens to come; keys and values of all P."""
    places, there = choice.places[:, :, -1], choice.there[:, :, -1, :, None]
    kept_keys, kept_values = (_gather(x, places) * there for x in (keys, values))
    return RetainedState(kept_keys, kept_values, choice.positions, choice.scores, choice.attention)
