"""Chunks of a token stream: the intermediate results that both passes of `chunk_scan` share.

Each token is read before it is written. Let d_i be the tokens' log decays, g_i their running sum
within a chunk, h_i = g_i - d_i the sum before token i, and M₀ the memory before the chunk.
The readers are the queries and, by the delta rule, the read keys exp(d_i) k_i: a key sees the
memory after its own decay. A token adds (β_j k_j)ᵀ u_j to the memory, with its write key β_j k_j
and its new value u_j, which is v_j, by the delta rule less what exp(d_j) k_j reads. A reader x of
token i gets

    x M_{i-1} = exp(h_i) x M₀ + Σ_{j<i} exp(h_i - g_j) (x · β_j k_j) u_j;

the factors of u_j are its scores. With S the scores of the read keys X, the new values solve a
unit triangular system: U - W M₀, with U = (I + S)⁻¹ V and W = (I + S)⁻¹ exp(h) X. This is the UT
transform of arXiv 2406.06484, section 3.2, with the decays of arXiv 2412.06464, section 3.3;
flash-linear-attention calls the results u, w and v_new. No exponent is positive.

Shapes: n chunks of c tokens, B batch, G key-value heads, H query heads, N = n·B·G, r = H/G, D key
width, V value width. Rows of queries are ordered (r, c).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from infini.memory.buffers import BUFFER_ELEMENTS, BUFFER_ELEMENTS_ACCELERATOR, Scratch

# Tokens of a chunk: scores cost more with longer chunks, the scan over chunks costs less.
CHUNK_SIZE = 32
# Lowest log decay: exp(-40) is below all precision, and exp of less can be slow, being denormal in
# float32.
MIN_LOG_DECAY = -40.0


class ChunkBlock(NamedTuple):
    """Consecutive chunks of one size."""

    start: int  # first token
    chunks: int  # n
    size: int  # c

    def view(self, x: Tensor) -> Tensor:
        """View the block's tokens by chunk: (B, H, T, …) → (n, B, H, c, …)."""
        tokens = x[:, :, self.start : self.start + self.chunks * self.size]
        return tokens.unflatten(2, (self.chunks, self.size)).movedim(2, 0)

    def views(
        self, q: Tensor, k: Tensor, beta: Tensor, decay: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """View all of them by chunk."""
        return (
            self.view(q),
            self.view(k),
            self.view(beta),
            None if decay is None else self.view(decay),
        )


def chunk_blocks(q: Tensor, k: Tensor, value_width: int) -> list[ChunkBlock]:
    """Cut T tokens into blocks that fit into the processor's caches.

    Args:
        q: Queries, (B, H, T, D).
        k: Keys, (B, G, T, D).
        value_width: V.

    Returns:
        The blocks in order; the last may be one shorter chunk.
    """
    batch, heads, tokens, width = q.shape
    groups, size = k.shape[1], CHUNK_SIZE
    largest = batch * groups * max(heads // groups * size, width) * max(width, value_width)
    elements = BUFFER_ELEMENTS.get(q.device.type, BUFFER_ELEMENTS_ACCELERATOR)
    step = max(1, elements // max(largest, 1))
    whole, rest = divmod(tokens, size)
    full_blocks = [
        ChunkBlock(first * size, min(step, whole - first), size) for first in range(0, whole, step)
    ]
    return [*full_blocks, ChunkBlock(whole * size, 1, rest)] if rest else full_blocks


class DecayFactors(NamedTuple):
    """Decays within a block of chunks as factors; None: no decay."""

    between: Tensor  # exp(h_i - g_j) for j < i, else 0: (N or 1, 1, c, c)
    own: Tensor | None = None  # exp(d): (N, c, 1)
    since_start: Tensor | None = None  # exp(h), from the chunk's start on: (N, 1, c, 1)
    to_end: Tensor | None = None  # from after the token to the chunk's end: (N, c, 1)
    whole: Tensor | None = None  # of the chunk: (n, B·G, 1, 1)

    @classmethod
    def from_decay(cls, decay: Tensor | None, like: Tensor) -> "DecayFactors":
        """Compute the factors.

        Args:
            decay: Log decays, (n, B, G, c); None: no decay.
            like: Tensor of the type and device wanted, (N, c, D).
        """
        earlier = like.new_ones(like.shape[1], like.shape[1]).tril(-1)
        if decay is None:
            return cls(earlier[None, None])
        # Differences of sums, in float64: one strong decay would blur all others of the chunk.
        own = decay.double().clamp_min(MIN_LOG_DECAY).flatten(0, 2)[..., None]  # (N, c, 1)
        sums = own.cumsum(1)
        before, last = sums - own, sums[:, -1:]
        logarithms = (before - sums.mT, own, before, last - sums, last)
        between, own, before, after, last = (
            x.to(like.dtype).clamp_(MIN_LOG_DECAY, 0).exp_() for x in logarithms
        )
        between = between.mul_(earlier)[:, None]
        return cls(between, own, before[:, None], after, last.unflatten(0, (len(decay), -1)))


@dataclass(frozen=True)
class Chunks:
    """Tokens of a block, in the memory's type, and what both passes compute from them."""

    queries: Tensor  # (N, r·c, D)
    read_keys: Tensor | None  # exp(d) k, the delta rule's readers: (N, c, D); None: linear rule
    write_keys: Tensor  # β k: (N, c, D)
    decay: DecayFactors
    count: int  # n
    scratch: Scratch

    @classmethod
    def from_tokens(
        cls,
        q: Tensor,
        k: Tensor,
        beta: Tensor,
        decay: Tensor | None,
        is_delta: bool,
        scratch: Scratch,
    ) -> "Chunks":
        """Copy a block's tokens into scratch memory.

        Args:
            q: Queries, (n, B, H, c, D), of any strides, as the rest.
            k: Keys, (n, B, G, c, D).
            beta: Write strengths, (n, B, G, c).
            decay: Log decays, (n, B, G, c); None: no decay.
            is_delta: Whether the write rule is the delta rule.
            scratch: Memory for intermediate results.
        """
        count, batch, groups, size, width = k.shape
        shape = count * batch * groups, size, width
        queries = scratch("queries", shape[0], q.shape[2] // groups * size, width)
        view_by_head(queries, q.shape).copy_(q)
        write_keys = scratch("write keys", *shape)
        view_by_head(write_keys, k.shape).copy_(k).mul_(beta[..., None])
        factors, read_keys = DecayFactors.from_decay(decay, write_keys), None
        if is_delta:
            read_keys = scratch("read keys", *shape)
            view_by_head(read_keys, k.shape).copy_(k)
            if factors.own is not None:
                read_keys.mul_(factors.own)
        return cls(queries, read_keys, write_keys, factors, count, scratch)

    def keys_backward(
        self, k: Tensor, beta: Tensor, d_write_keys: Tensor, d_read_keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradients of keys and write strengths: the backward pass of `from_tokens`.

        Args:
            k: As in `from_tokens`.
            beta: As in `from_tokens`.
            d_write_keys: Gradient of the write keys, (N, c, D); overwritten.
            d_read_keys: Gradient of the read keys, (N, c, D); overwritten.

        Returns:
            ∂k, (n, B, G, c, D), and ∂β, (n, B, G, c).
        """
        d_keys = view_by_head(d_write_keys, k.shape)
        d_beta = torch.mul(d_keys, k, out=self.scratch("dot", *k.shape)).sum(-1)
        d_keys.mul_(beta[..., None])
        if d_read_keys is not None:
            if self.decay.own is not None:
                d_read_keys.mul_(self.decay.own)
            d_write_keys.add_(d_read_keys)
        return d_keys, d_beta

    def unbind(self, x: Tensor) -> tuple[Tensor, ...]:
        """View the chunks one by one: (N, ·, ·) → n of (B·G, ·, ·)."""
        return x.unflatten(0, (self.count, -1)).unbind(0)

    def view_by_token(self, x: Tensor) -> Tensor:
        """View rows of queries by token: (N, r·c, ·) → (N, r, c, ·)."""
        return x.unflatten(1, (-1, self.write_keys.shape[1]))

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute x·y times the decay between them, zero unless y's token is before x's.

        Args:
            x: (N, r·c, ·).
            y: (N, c, ·).

        Returns:
            The scores, (N, r·c, c), valid until the next call.
        """
        scores = self.scratch("scores", *x.shape[:2], y.shape[1])
        torch.bmm(x, y.mT, out=scores)
        self.view_by_token(scores).mul_(self.decay.between)
        return scores

    def decay_since_start(self, x: Tensor, name: str) -> Tensor:
        """Multiply x, (N, r·c, ·), by the decay from the chunk's start to before the token.

        name: Name of the scratch memory for the result.
        """
        if self.decay.since_start is None:
            return x
        out = self.scratch(name, *x.shape)
        torch.mul(self.view_by_token(x), self.decay.since_start, out=self.view_by_token(out))
        return out

    def decay_to_end(self, x: Tensor, name: str) -> Tensor:
        """Multiply x, (N, c, ·), by the decay from after the token to the chunk's end.

        name: Name of the scratch memory for the result.
        """
        if self.decay.to_end is None:
            return x
        return torch.mul(x, self.decay.to_end, out=self.scratch(name, *x.shape))


def view_by_head(x: Tensor, shape: torch.Size) -> Tensor:
    """View the heads of a group apart: (N, H/G·c, ·) → (n, B, H, c, ·).

    shape: (n, B, H, c, …), that of the view but for its last axis.
    """
    return x.view(*shape[:4], -1)
