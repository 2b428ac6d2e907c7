"""Recurrent memory: a matrix per head, written token by token with a delay.

A token reads the memory as it is after the token `delay` before it, as behind a sliding window of
`delay` tokens. The write rules are those of `stream`.

Shapes: B batch, H query heads, G key-value heads, T tokens, D key width, V value width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from infini.choices import Update, check_choice
from infini.memory.packing import Packing, gather
from infini.memory.stream import Stream, stream_memory


class RecurrentState(NamedTuple):
    """State of a recurrent memory, passed on from call to call; its size is constant.

    The last `delay` - 1 tokens are pending: not written yet. Before the first token, the pending
    tokens are `delay` - 1 that write nothing.
    """

    matrix: Tensor
    """M: (B, G, D, V), float32 at least"""
    keys: Tensor
    """Keys of the pending tokens: (B, G, delay - 1, D)"""
    values: Tensor
    """Values of the pending tokens: (B, G, delay - 1, V)"""
    betas: Tensor
    """Write strengths of the pending tokens, 0 to 1: (B, G, delay - 1)"""
    decays: Tensor
    """Log decays of the pending tokens, 0 or less: (B, G, delay - 1)"""

    @classmethod
    def empty(cls, stream: Stream, delay: int = 1) -> "RecurrentState":
        """Return the state before the first token.

        Args:
            stream: Any tokens, which give sizes, types and device.
            delay: Tokens, see `recurrent_memory`.

        Raises:
            ValueError: The delay is below 1.
        """
        if delay < 1:
            raise ValueError(f"delay must be ≥ 1, got {delay}")
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
        """Tokens from a token to the last one that it reads; 1: it reads all before it."""
        return self.keys.shape[2] + 1

    def prepend_to(self, stream: Stream) -> Stream:
        """Return the pending tokens, then those of `stream`: (B, G, delay - 1 + T, ·)."""
        k, v, beta = (torch.cat(pair, 2) for pair in zip(self[1:4], stream[:3], strict=True))
        decay = None if stream.decay is None else torch.cat([self.decays, stream.decay], 2)
        return Stream(k, v, beta, decay)

    def detach(self) -> "RecurrentState":
        """Return the state detached from the autograd graph."""
        return RecurrentState(*(tensor.detach() for tensor in self))

    def select(self, samples: Tensor) -> "RecurrentState":
        """Return the state of these samples, in this order; samples: (n,) int64."""
        return RecurrentState(*(t.index_select(0, samples.to(t.device)) for t in self))

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self)


def recurrent_memory(  # noqa: PLR0913 (options by name)
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    *,
    delay: int = 1,
    update: Update = "delta",
    state: RecurrentState | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, RecurrentState]:
    """Write every token to the memory; read it with query t as it is after token t - delay.

    The write rules are those of arXiv 2006.16236, equation 18 (linear), 2406.06484 (delta) and
    2412.06464 (delta, with decay); see `infini.memory.stream`. Reading a document in any chunks,
    the state passed on, gives the same result as reading it whole.

    Args:
        q: Queries after any feature map, (B, H, T, D), any T.
        k: Keys after any feature map, (B, G, T, D); by the delta rule of length 1 at most; G
            divides H.
        v: Values, (B, G, T, V).
        beta: Write strengths, 0 to 1: (B, G, T).
        decay: Log decays, 0 or less: (B, G, T); None: no decay.
        delay: Tokens.
        update: Write rule, "linear" or "delta".
        state: State after the tokens before; None: there are none.
        mask: (B, T), False on padding, which is neither read from nor written, nor does it count
            for the delay.

    Returns:
        The reads, (B, H, T, V), zero while the memory is empty and on padding, and the state after
        the last token, its matrix in float32 at least.

    Raises:
        ValueError: The delay is below 1, or not that of the state.
        InputError: An unknown update, or a mask of another shape.
    """
    check_choice("update", update, Update)
    stream = Stream(k, v, beta, decay)
    if state is None:
        state = RecurrentState.empty(stream, delay)
    elif state.delay != delay:
        raise ValueError(f"delay must be {state.delay}, as in the state, got {delay}")
    elif stream.decay is None and delay > 1:  # the pending tokens may have theirs
        stream = stream._replace(decay=torch.zeros_like(stream.beta))
    packing = Packing.from_mask(q.shape[0], q.shape[2], mask)
    q, stream = packing.pack(q, 2), stream.map(lambda x: packing.pack(x, 2))
    if delay > 1:
        stream = state.prepend_to(stream)  # (B, G, delay - 1 + T, ·)
    lengths, tokens = packing.lengths, q.shape[2]
    real = None
    writes = stream.map(lambda x: x[:, :, :tokens])
    if (lengths != tokens).any():
        real = torch.arange(tokens) < lengths[:, None]  # (B, T)
        writes = writes.masked(real)
    out, matrix = stream_memory(q, writes, state.matrix, update)
    if real is not None:
        out = packing.unpack(out.where(real.to(out.device)[:, None, :, None], 0), 2)
    pending = stream.map(lambda x: _narrow(x, lengths, delay - 1))
    decays = torch.zeros_like(pending.beta) if pending.decay is None else pending.decay
    return out, RecurrentState(matrix, *pending[:3], decays)


def _narrow(x: Tensor, starts: Tensor, count: int) -> Tensor:
    """(B, G, T, …) → (B, G, count, …), from each sample's start on; starts: (B,), on the CPU."""
    if (starts == starts[0]).all():
        return x.narrow(2, int(starts[0]), count).clone()  # not a view of all tokens
    index = starts[:, None] + torch.arange(count)
    return gather(x, index.to(x.device), 2)
