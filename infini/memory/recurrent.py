"""Recurrent memory: a matrix a head, written token by token as tokens leave a sliding window.

A token reads what was written up to `delay` tokens before it. The rules are those of `stream`.

Shapes: B batch, H query heads, G key-value heads, T tokens, D key width, V value width.
"""

from typing import NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from infini.choices import Update, check_choice
from infini.memory.packing import Packing, gather
from infini.memory.stream import Stream, stream_memory


class RecurrentState(NamedTuple):
    """All that later tokens need: a value, of the same size after any number of tokens.

    The tokens that the next `delay` - 1 tokens must not read are not written yet. Before the
    first token these are `delay` - 1 that write nothing.
    """

    matrix: Tensor
    """M: (B, G, D, V), float32 at least"""
    keys: Tensor
    """Not written yet: (B, G, delay - 1, D)"""
    values: Tensor
    """(B, G, delay - 1, V)"""
    betas: Tensor
    """Strengths of the writes, 0 to 1: (B, G, delay - 1)"""
    decays: Tensor
    """Logarithms, 0 or less: (B, G, delay - 1)"""

    @classmethod
    def empty(cls, stream: Stream, delay: int = 1) -> "RecurrentState":
        """Nothing written; `stream`, of any tokens, gives sizes, types and device.

        delay: tokens, see `recurrent_memory`. ValueError: a delay below 1.
        """
        if delay < 1:
            raise ValueError(f"delay {delay}: a token is written after it has read, so 1 at least")
        k, v, beta, decay = stream
        dtype = k.dtype if k.dtype == torch.float64 else torch.float32
        shape = *k.shape[:2], delay - 1
        return cls(
            k.new_zeros(*k.shape[:2], k.shape[3], v.shape[3], dtype=dtype),
            k.new_zeros(*shape, k.shape[3]),
            v.new_zeros(*shape, v.shape[3]),
            beta.new_zeros(shape),
            (beta if decay is None else decay).new_zeros(shape),
        )

    @property
    def delay(self) -> int:
        """How many tokens before its own a token reads; 1: all before it."""
        return self.keys.shape[2] + 1

    def before(self, stream: Stream) -> Stream:
        """The tokens not written yet, then those of `stream`: (B, G, delay - 1 + T, ·)."""
        k, v, beta = (torch.cat(pair, 2) for pair in zip(self[1:4], stream[:3], strict=True))
        decay = None if stream.decay is None else torch.cat([self.decays, stream.decay], 2)
        return Stream(k, v, beta, decay)

    def detach(self) -> "RecurrentState":
        """The same state without the graph that led to it."""
        return RecurrentState(*(tensor.detach() for tensor in self))

    def select(self, samples: Tensor) -> "RecurrentState":
        """The state of these samples, in this order; samples: (n,) int64."""
        return RecurrentState(*(t.index_select(0, samples.to(t.device)) for t in self))

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self)


class Options(TypedDict, total=False):
    """What `recurrent_memory` can be told by name."""

    delay: int  # tokens, 1 at least; without it 1
    update: Update  # without it "delta"
    state: RecurrentState | None  # of the tokens before; without it there are none
    mask: Tensor | None  # (B, T), False on padding, on either side; without it there is none


def recurrent_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    **options: Unpack[Options],
) -> tuple[Tensor, RecurrentState]:
    """Token t reads with `q` the memory as it is after token t - delay; every token is written.

    q: (B, H, T, D), k: (B, G, T, D), both after any feature map, by the delta rule of length 1 at
    most; v: (B, G, T, V); G divides H; beta: (B, G, T), 0 to 1; decay: (B, G, T), logarithms, 0 or
    less. The rules: arXiv 2006.16236, equation 18 (linear), 2406.06484 (delta), 2412.06464
    (delta, decayed); see `infini.memory.stream`. By name, `options`: delay, tokens (1); update,
    "delta" (default) or "linear"; state, after the tokens before; mask, (B, T), False on padding.

    Returns (B, H, T, V), zeros while the memory is empty and on padding, and the state, its matrix
    in float32 at least. Padding is skipped: neither read from nor written, nor does it count for
    the delay. Feeding a document in any chunks, the state passed on, gives what feeding it whole
    gives. ValueError: a delay below 1, or not the state's. InputError: no such update, a mask of
    another size.
    """
    return _read_late(q, Stream(k, v, beta, decay), **options)


def _read_late(
    q: Tensor,
    stream: Stream,
    *,
    delay: int = 1,
    update: Update = "delta",
    state: RecurrentState | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, RecurrentState]:
    """`recurrent_memory` of a stream."""
    check_choice("update", update, Update)
    if state is None:
        state = RecurrentState.empty(stream, delay)
    elif state.delay != delay:
        raise ValueError(f"the state is of delay {state.delay}, not of {delay}")
    elif stream.decay is None and delay > 1:  # the pending tokens may have theirs
        stream = stream._replace(decay=torch.zeros_like(stream.beta))
    packing = Packing.of(q.shape[0], q.shape[2], mask)
    q, stream = packing.pack(q, 2), stream.map(lambda x: packing.pack(x, 2))
    if delay > 1:
        stream = state.before(stream)  # (B, G, delay - 1 + T, ·)
    lengths, tokens = packing.lengths, q.shape[2]
    real = None
    written = stream.map(lambda x: x[:, :, :tokens])
    if (lengths != tokens).any():
        real = torch.arange(tokens) < lengths[:, None]  # (B, T)
        written = written.only(real)
    out, matrix = stream_memory(q, written, state.matrix, update)
    if real is not None:
        out = packing.unpack(out.where(real.to(out.device)[:, None, :, None], 0), 2)
    pending = stream.map(lambda x: _later(x, lengths, delay - 1))
    decays = torch.zeros_like(pending.beta) if pending.decay is None else pending.decay
    return out, RecurrentState(matrix, *pending[:3], decays)


def _later(x: Tensor, starts: Tensor, count: int) -> Tensor:
    """(B, G, T, …) → (B, G, count, …), from each sample's start on; starts: (B,), on the CPU."""
    if (starts == starts[0]).all():
        return x.narrow(2, int(starts[0]), count).clone()  # not a view of all tokens
    index = starts[:, None] + torch.arange(count)
    return gather(x, index.to(x.device), 2)
