"""Attention to sinks, a window, and retained key-value pairs that stay exact behind it.

A token of the block that begins at position b attends to the S sinks, the K pairs that the
retention policy (`eviction`) selected for the block, and the tokens b - W < j ≤ t. The selection
has no gradient; what is read from the pairs has one, and trains the bias that also enters the
selection.

Shapes: B batch, H query heads, G key-value heads, T new tokens, D key width, V value width, N
blocks of C queries, P pairs in all: K retained, R = W + C - 2 recent, T new ones.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infini.choices import MemoryMode
from infini.errors import InputError
from infini.memory.block_reader import MAX_BIAS, BlockReader
from infini.memory.eviction import (
    BlockLayout,
    CallPairs,
    LayerPolicy,
    LayerSize,
    PinnedPairs,
    RetainedState,
    RetentionPolicy,
    Rotate,
    Selection,
    num_recent,
    policy_by_name,
    rotate_pairs,
    select,
)
from infini.memory.eviction.head_budgets import num_empty, num_slots, pack, unpack
from infini.memory.packing import swap_halves
from infini.memory.window import Attention, ChunkInfo

MASKED_SCORE = -1e4  # attention score of an empty slot


class RetainedPairs(nn.Module):
    """Retained pairs of a layer: their number, their policy, and a learned bias on their scores.

    `bias` shifts the scores of all retained pairs, one scalar per query head. `weight` scores each
    pair by its value, one vector per key-value head.

    Args:
        heads: Query heads, H.
        kv_heads: Key-value heads, G.
        widths: Key and value width, D and V.
        num_retained: Pairs that a key-value head retains, K.
        policy: Selects the pairs; None: `decayed_attention`.
        layer_index: Decoder layer, from 0; passed to the policy.

    Raises:
        InputError: A tensor of the policy has a name that torch keeps for itself, such as "keys".
    """

    mode: MemoryMode = "own"
    """Whose pairs are read: the sample's "own", another sample's ("swapped"), or none ("off")"""
    gate_parameters = ("bias",)  # trained at the gate learning rate

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        widths: tuple[int, int],
        num_retained: int,
        policy: RetentionPolicy | None = None,
        layer_index: int = 0,
    ):
        super().__init__()
        self.layer_index = layer_index
        self.num_retained = num_retained
        self.policy = policy or policy_by_name("decayed_attention")
        self.bias = nn.Parameter(torch.zeros(heads))
        self.weight = nn.Parameter(torch.zeros(kv_heads, widths[1]))
        shapes = self.policy.weight_shapes(LayerSize(heads, kv_heads, *widths))
        for name in shapes:
            if not name.isidentifier() or hasattr(nn.ParameterDict(), name):
                raise InputError(
                    f"policy {self.policy.name!r}: weight_shapes: {name!r} is no identifier, or a "
                    "name that torch keeps for itself: choose another"
                )
        self.policy_weights = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(shape), False) for name, shape in shapes.items()}
        )
        """Tensors of the policy that `infini.fit_policy` fits; zeros: not fitted"""

    def pair_bias(self, v: Tensor) -> Tensor:
        """Compute the learned bias of pairs from their values: (B, G, P, V) → (B, G, P), logits.

        Values are normalised, so only their direction matters.
        """
        with torch.autocast(v.device.type, enabled=False):
            v = F.normalize(v.float(), dim=-1) * v.shape[-1] ** 0.5
            return torch.einsum("bgpv,gv->bgp", v, self.weight.float())

    def layer_policy(self, rotate: Rotate | None) -> LayerPolicy:
        """Return the policy with its tensors.

        Args:
            rotate: The layer's rotary embedding; None: it has none.
        """
        weights = {name: x.float() for name, x in self.policy_weights.items()}
        return LayerPolicy(self.policy, self.layer_index, weights, rotate, self.num_retained)


class WindowPairs(NamedTuple):
    """Key-value pairs of a layer beside the retained ones, keys without positions."""

    keys: Tensor  # recent and new: (B, G, R + T, D)
    values: Tensor  # (B, G, R + T, V)
    sink_keys: Tensor  # new ones included: (B, G, S, D)
    sink_values: Tensor  # (B, G, S, V)
    pinned: Tensor | None = None  # as in `ChunkInfo`, on the pairs' device


class AttentionSpec(NamedTuple):
    """The attention of a base's layer."""

    attention: Attention
    rotate: Rotate | None  # gives q and k their positions; None: they have none, or have them
    scale: float  # of q·k
    context: int | None = None  # tokens of the base's context; None: any
    sliding_window: int | None = None  # the layer's own window, in tokens, where it has one
    is_softmax: bool = False  # whether `attention` is plain softmax(scale · q·k) v


def retained_attention(
    q: Tensor,
    pairs: WindowPairs,
    state: RetainedState,
    chunk: ChunkInfo,
    spec: AttentionSpec,
    retained: RetainedPairs,
) -> tuple[Tensor, RetainedState]:
    """Compute the new tokens' attention to sinks, retained pairs and window.

    Args:
        q: Queries without positions, (B, H, T, D).
        pairs: Sinks, recent and new pairs.
        state: Retained pairs before the call.
        chunk: Number of past and new tokens per sample, and pinned tokens.
        spec: The base's attention.
        retained: Learned bias and retention policy.

    Returns:
        The output, (B, T, H, V), and the retained pairs after the call.
    """
    if chunk.pinned is not None:
        pairs = pairs._replace(pinned=chunk.pinned.to(q.device))
    limits = [x for x in (spec.context, spec.sliding_window) if x is not None]
    max_distance = min(limits, default=None)
    samples_of: dict[BlockLayout, list[int]] = {}
    lengths = zip(chunk.past_lengths.tolist(), chunk.lengths.tolist(), strict=True)
    for sample, (past, new) in enumerate(lengths):
        layout = BlockLayout(
            past, new, chunk.window, chunk.sinks, max_distance, spec.sliding_window
        )
        samples_of.setdefault(layout, []).append(sample)
    if len(samples_of) == 1:
        return _attend_in_chunks(q, pairs, state, layout, spec, retained)
    outs, states = [], []
    for layout, samples in samples_of.items():
        rows = torch.tensor(samples, device=q.device)
        own_pairs = WindowPairs(*(x[rows] for x in pairs[:4]))
        if pairs.pinned is not None:
            own_pairs = own_pairs._replace(pinned=pairs.pinned[rows])
        own_state = RetainedState(*(x[rows] for x in state))
        out, own_next = _attend_in_chunks(q[rows], own_pairs, own_state, layout, spec, retained)
        outs.append(out)
        states.append(own_next)
    order = [sample for samples in samples_of.values() for sample in samples]
    inverse = torch.tensor(order, device=q.device).argsort()
    next_state = RetainedState(*(torch.cat(x)[inverse] for x in zip(*states, strict=True)))
    return torch.cat(outs)[inverse], next_state


def _attend_in_chunks(
    q: Tensor,
    pairs: WindowPairs,
    state: RetainedState,
    layout: BlockLayout,
    spec: AttentionSpec,
    retained: RetainedPairs,
) -> tuple[Tensor, RetainedState]:
    """Attend for samples of one layout, in steps of at most the base's context."""
    num_new = layout.num_new
    step = max(1, num_new if spec.rotate is None else spec.context or num_new)
    outs = []
    for start in range(0, num_new, step):
        end = min(start + step, num_new)
        keys, values = (x[:, :, start : end + num_recent(layout.window)] for x in pairs[:2])
        part = replace(layout, num_past=layout.num_past + start, num_new=end - start)
        own = pairs._replace(keys=keys, values=values)
        min_share = retained.policy.min_share
        if min_share is not None:
            state = unpack(state, num_slots(state, part, min_share))
        out, state = _attend(q[:, :, start:end], own, state, part, spec, retained)
        if min_share is not None:
            state = pack(state, retained.num_retained)
        outs.append(out)
    empty = q.new_zeros(len(q), 0, q.shape[1], pairs.values.shape[3])
    out = torch.cat(outs, 1) if outs else empty
    return F.pad(out, (0, 0, 0, 0, 0, q.shape[2] - num_new)), state


def _attend(
    q: Tensor,
    pairs: WindowPairs,
    state: RetainedState,
    layout: BlockLayout,
    spec: AttentionSpec,
    retained: RetainedPairs,
) -> tuple[Tensor, RetainedState]:
    """Attend for samples of one layout."""
    values = torch.cat([state.values, pairs.values], 2)  # (B, G, P, V)
    key_bias = retained.pair_bias(values)  # (B, G, P)
    if _can_read_blockwise(q, key_bias, spec, retained):
        return _attend_blockwise(q, pairs, (values, key_bias), state, layout, spec, retained)
    K, N, scale = state.keys.shape[2], layout.num_blocks, spec.scale
    q, sink_q, rotated_keys, sink_keys = _rotated(q, pairs, state, layout, spec.rotate)
    keys = torch.cat([state.keys, pairs.keys], 2)  # (B, G, P, D)
    pinned = _pinned_pairs(keys, pairs, state, layout, spec.rotate)
    selection = select(
        (q * scale, sink_q * scale),
        CallPairs(keys, rotated_keys, values, sink_keys, pinned),
        key_bias,
        state,
        layout,
        retained.layer_policy(spec.rotate),
    )
    if torch.is_autocast_enabled(q.device.type):  # the attention would cast them later
        dtype = torch.get_autocast_dtype(q.device.type)
        q, sink_q, rotated_keys, sink_keys = (
            x.to(dtype) for x in (q, sink_q, rotated_keys, sink_keys)
        )
    skip = num_empty(selection.valid, retained.policy.min_share)
    indices, valid = (x[:, :, :-1, skip:] for x in (selection.indices, selection.valid))
    # (B, G, N, n), n up to K
    retained_keys, retained_values = _gather(rotated_keys, indices), _gather(values, indices)
    if pinned is not None:
        by_block = zip(retained_keys.unbind(2), indices.unbind(2), strict=True)
        moved = [pinned.move_closer(keys_, n, index) for n, (keys_, index) in enumerate(by_block)]
        retained_keys = torch.stack(moved, 2)
    retained_bias = key_bias.gather(2, indices.flatten(2)).view(indices.shape)  # (B, G, N, K)
    if retained.mode == "off":
        valid = torch.zeros_like(valid)
    elif retained.mode == "swapped":
        own = retained_keys, retained_values, retained_bias, valid
        retained_keys, retained_values, retained_bias, valid = map(swap_halves, own)
    # Queries are [rotated for window and retained pairs | rotated for sinks]; a key is zero in the
    # half that is not its own. Two more columns add the bias of the query head and of the pair
    # (MASKED_SCORE in an empty slot). Zeros pad the width to a multiple of 8, for fused kernels.
    width = rotated_keys.shape[3]
    zeros = -(2 * width + 2) % 8
    head_bias = retained.bias[None, :, None, None].expand(*q.shape[:3], 1).to(q.dtype)
    extended_q = torch.cat([q, sink_q, head_bias, torch.ones_like(head_bias)], -1)
    extended_q = F.pad(extended_q, (0, zeros))
    masked = max(MASKED_SCORE / scale, torch.finfo(rotated_keys.dtype).min)
    own_bias = torch.where(valid, retained_bias / scale, masked)[..., None].to(rotated_keys.dtype)
    bias_columns = torch.cat([torch.full_like(own_bias, 1 / scale), own_bias], -1)
    extended_keys = (
        _expand_per_block(F.pad(sink_keys, (width, 2 + zeros)), N),
        torch.cat([F.pad(retained_keys, (0, width)), F.pad(bias_columns, (0, zeros))], -1),
        layout.unfold_windows(F.pad(rotated_keys[:, :, K:], (0, width + 2 + zeros))),
    )  # (B, G, N, S or K or W - 1 + C, ·)
    all_values = (
        _expand_per_block(pairs.sink_values, N),
        retained_values,
        layout.unfold_windows(pairs.values),
    )
    out = spec.attention(
        _blocks_to_batch(layout.split_queries(extended_q)),
        _blocks_to_batch(torch.cat(extended_keys, 3)),
        _blocks_to_batch(torch.cat(all_values, 3)),
        _mask(layout, len(q), indices.shape[3], q.device),
    )  # (B·N, C, H, V)
    out = out.unflatten(0, (-1, N)).flatten(1, 2)
    out = out[:, layout.block_offset : layout.block_offset + layout.num_new]
    return out, _next_state(selection, state, keys, values)


def _can_read_blockwise(
    q: Tensor, key_bias: Tensor, spec: AttentionSpec, retained: RetainedPairs
) -> bool:
    """Return whether `BlockReader` computes the same: softmax in full precision, no gradients."""
    if torch.is_grad_enabled() or torch.is_autocast_enabled(q.device.type):
        return False
    if not spec.is_softmax or retained.mode != "own" or q.dtype.itemsize < 4:
        return False
    return bool(retained.bias.abs().max() + key_bias.abs().max() <= MAX_BIAS)


def _attend_blockwise(
    q: Tensor,
    pairs: WindowPairs,
    values_and_bias: tuple[Tensor, Tensor],
    state: RetainedState,
    layout: BlockLayout,
    spec: AttentionSpec,
    retained: RetainedPairs,
) -> tuple[Tensor, RetainedState]:
    """Attend and select in one pass over the blocks, without gradients."""
    values, key_bias = values_and_bias
    keys = torch.cat([state.keys, pairs.keys], 2)  # (B, G, P, D)
    rotated_q, rotated_keys = _rotated_qk(q, pairs, state, layout, spec.rotate)
    sinks = _sink_scores(q, pairs.sink_keys, layout, spec), pairs.sink_values
    rotated_q = rotated_q * spec.scale
    biases = retained.bias, key_bias
    K = state.keys.shape[2]
    pinned = _pinned_pairs(keys, pairs, state, layout, spec.rotate)
    call_pairs = CallPairs(keys, rotated_keys, values, pairs.sink_keys, pinned)
    reader = BlockReader(rotated_q, call_pairs, sinks, biases, layout, K)
    layer_policy = retained.layer_policy(spec.rotate)
    selection = select(reader, call_pairs, key_bias, state, layout, layer_policy)
    return reader.out, _next_state(selection, state, keys, values)


def _pinned_pairs(
    keys: Tensor,
    pairs: WindowPairs,
    state: RetainedState,
    layout: BlockLayout,
    rotate: Rotate | None,
) -> PinnedPairs | None:
    """Return the pinned tokens of samples of one layout; None: there are none.

    keys: of all pairs, without positions, (B, G, P, D).
    """
    if pairs.pinned is None:
        return None
    return PinnedPairs(pairs.pinned, keys, state.positions, layout, rotate)


def _sink_scores(q: Tensor, sink_keys: Tensor, layout: BlockLayout, spec: AttentionSpec) -> Tensor:
    """Return the scores of the sinks, -inf where a query does not attend to one: (B, H, T, S).

    From position W + S - 1 on, every query is at the same distance from a sink, so the sinks' keys
    are rotated instead of the queries.
    """
    if not layout.sinks:
        return q.new_empty(*q.shape[:3], 0)
    edge = layout.window + layout.sinks - 1
    query = torch.arange(layout.num_past, layout.end, device=q.device).clamp(max=edge)[:, None]
    sink = torch.arange(layout.sinks, device=q.device)
    num_near = min(max(edge - layout.num_past, 0), layout.num_new)
    near, far = q[:, :, :num_near], q[:, :, num_near:]
    near_keys = far_keys = sink_keys
    if spec.rotate is not None and num_near:
        near = spec.rotate(near, query[:num_near].mT)
        near_keys = spec.rotate(sink_keys, sink[None])
    if spec.rotate is not None and num_near < layout.num_new:
        far_keys = spec.rotate(sink_keys, sink[None] - edge)
    grouped = [
        x.unflatten(1, (keys.shape[1], -1)) @ keys[:, :, None].mT
        for x, keys in ((near, near_keys), (far, far_keys))
        if x.shape[2]
    ]
    scores = torch.cat(grouped, 3).flatten(1, 2) * spec.scale
    hidden = sink > query
    if layout.sliding_window is not None:
        hidden |= query - sink >= layout.sliding_window
    return scores.masked_fill_(hidden, -torch.inf)


def _rotated(
    q: Tensor,
    pairs: WindowPairs,
    state: RetainedState,
    layout: BlockLayout,
    rotate: Rotate | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q rotated for the window, q rotated for sinks, all rotated keys, rotated sink keys."""
    rotated_q, keys = _rotated_qk(q, pairs, state, layout, rotate)
    if rotate is None:
        return q, q, keys, pairs.sink_keys
    positions = torch.arange(layout.num_past, layout.end, device=q.device)[None]
    at_edge = positions.clamp(max=layout.window + layout.sinks - 1)
    sink_keys = rotate(pairs.sink_keys, torch.arange(layout.sinks, device=q.device)[None])
    return rotated_q, rotate(q, at_edge), keys, sink_keys


def _rotated_qk(
    q: Tensor,
    pairs: WindowPairs,
    state: RetainedState,
    layout: BlockLayout,
    rotate: Rotate | None,
) -> tuple[Tensor, Tensor]:
    """Return q and the keys of retained, recent and new pairs, with positions.

    Positions count from the call's first token.
    """
    if rotate is None:
        return q, torch.cat([state.keys, pairs.keys], 2)
    positions = torch.arange(-num_recent(layout.window), layout.num_new, device=q.device)[None]
    back = (state.positions - layout.num_past).masked_fill(state.positions < 0, 0)
    if pairs.pinned is not None and layout.max_distance is not None:
        back = back.clamp(min=1 - layout.max_distance)  # `move_closer` places pairs further back
    retained = rotate_pairs(state.keys, back, rotate)
    keys = torch.cat([retained, rotate(pairs.keys, positions)], 2)
    return rotate(q, positions[:, -layout.num_new :]), keys


def _gather(x: Tensor, indices: Tensor) -> Tensor:
    """(B, G, P, D), indices (B, G, …) → (B, G, …, D)."""
    index = indices.flatten(2)[..., None].expand(-1, -1, -1, x.shape[3])
    return x.gather(2, index).unflatten(2, indices.shape[2:])


def _expand_per_block(x: Tensor, num_blocks: int) -> Tensor:
    """(B, G, S, D) → (B, G, N, S, D)."""
    return x[:, :, None].expand(-1, -1, num_blocks, -1, -1)


def _blocks_to_batch(x: Tensor) -> Tensor:
    """(B, H, N, n, ·) → (B·N, H, n, ·)."""
    return x.transpose(1, 2).flatten(0, 1)


def _mask(layout: BlockLayout, batch: int, num_retained: int, device: torch.device) -> Tensor:
    """Return which sinks, retained pairs and window tokens a query attends to, as True.

    (B·N, 1, C, S + K + W - 1 + C); empty slots of retained pairs are True here.
    """
    sinks = layout.sink_mask(device)
    retained = torch.ones(*sinks.shape[:2], num_retained, dtype=torch.bool, device=device)
    mask = torch.cat([sinks, retained, layout.window_mask(device)], -1)
    return mask[None].expand(batch, -1, -1, -1).flatten(0, 1)[:, None]


def _next_state(
    selection: Selection, state: RetainedState, keys: Tensor, values: Tensor
) -> RetainedState:
    """Return the retained pairs for later tokens; keys, values: those of all P pairs."""
    if torch.equal(selection.positions, state.positions):
        return RetainedState(state.keys, state.values, *selection[2:])
    indices, valid = selection.indices[:, :, -1], selection.valid[:, :, -1, :, None]
    retained_keys, retained_values = (_gather(x, indices) * valid for x in (keys, values))
    return RetainedState(retained_keys, retained_values, *selection[2:])


def retain_pinned(state: RetainedState, k: Tensor, v: Tensor, chunk: ChunkInfo) -> RetainedState:
    """Return the retained pairs after texts of up to W + S tokens that the base itself has read.

    Only token S can be one, if it is pinned: it has left the window at a block's end.

    Args:
        state: The empty state.
        k: Keys without positions, (B, G, T, D).
        v: Values, (B, G, T, V).
        chunk: The texts as the first chunk.
    """
    S, length = chunk.sinks, chunk.window + chunk.sinks
    layout = BlockLayout(0, length, chunk.window, S, None)
    if chunk.pinned is None or not layout.fills_window(layout.num_blocks - 1):
        return state
    stays = (chunk.pinned == S).any(1) & (chunk.lengths == length)
    if not bool(stays.any()):
        return state
    stays = stays.to(k.device)[:, None]  # (B, 1)
    keys, values, positions = (x.clone() for x in state[:3])
    keys[:, :, -1] = k[:, :, S] * stays[..., None]
    values[:, :, -1] = v[:, :, S] * stays[..., None]
    positions[:, :, -1] = torch.where(stays, S, -1)
    own = RetainedState(keys, values, positions, *state[3:])
    return pack(own, keys.shape[2]) if own.counts.shape[1] else own
