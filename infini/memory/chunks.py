"""A stream of tokens in chunks: what the passes over a block of them share.

Each token is read before it is written. Let d_i be the tokens' decays, g_i their running sum
within a chunk and h_i = g_i - d_i the sum before token i, and M₀ the memory before the chunk.
Readers are the queries and, by the delta rule, exp(d_i) k_i: a key sees the memory after its
decay. A token adds w_jᵀe_j to the memory, of its writing key w_j = β_j k_j and its error e_j,
which is v_j, by the delta rule less what exp(d_j) k_j reads. A reader x of token i finds

    x M_{i-1} = exp(h_i) x M₀ + Σ_{j<i} exp(h_i - g_j) (x·w_j) e_j,    the factors of e_j: scores.

With S the scores of the keys as readers, X, the errors solve a unit triangular system,
E = (I + S)⁻¹ (V - exp(h) X M₀): the UT transform of arXiv 2406.06484, section 3.2, with the
decays of arXiv 2412.06464, section 3.3. No exponent is positive.

Shapes: n chunks of c tokens, B batch, G key-value heads, H query heads, N = n·B·G, r = H/G, D key
width, V value width. Rows of queries are ordered (r, c).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from infini.memory.buffers import BLOCK, BLOCK_ELSEWHERE, Scratch

# Tokens of a chunk: the scores cost more with it, memories passed on one by one less.
CHUNK = 32
# Of a decay's logarithm: exp(-40) is below all precision, and exp of less can be slow, being
# denormal in float32.
FLOOR = -40.0


class Block(NamedTuple):
    """Consecutive chunks of one size."""

    start: int  # its first token
    chunks: int  # n
    size: int  # c

    def of(self, x: Tensor) -> Tensor:
        """(B, H, T, …) → (n, B, H, c, …), a view."""
        tokens = x[:, :, self.start : self.start + self.chunks * self.size]
        return tokens.unflatten(2, (self.chunks, self.size)).movedim(2, 0)

    def of_each(
        self, q: Tensor, k: Tensor, beta: Tensor, decay: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """`of` them all."""
        return self.of(q), self.of(k), self.of(beta), None if decay is None else self.of(decay)


def blocks(q: Tensor, k: Tensor, value_width: int) -> list[Block]:
    """The T tokens in blocks that the caches hold; the last may be one shorter chunk."""
    batch, heads, tokens, width = q.shape
    groups, size = k.shape[1], CHUNK
    largest = batch * groups * max(heads // groups * size, width) * max(width, value_width)
    step = max(1, BLOCK.get(q.device.type, BLOCK_ELSEWHERE) // max(largest, 1))
    whole, rest = divmod(tokens, size)
    dealt = [Block(first * size, min(step, whole - first), size) for first in range(0, whole, step)]
    return [*dealt, Block(whole * size, 1, rest)] if rest else dealt


class Decay(NamedTuple):
    """What is left of the memory, as factors; None: all of it."""

    between: Tensor  # exp(h_i - g_j) for j < i, else 0: (N or 1, 1, c, c)
    own: Tensor | None = None  # exp(d): (N, c, 1)
    before: Tensor | None = None  # exp(h), from the chunk's start on: (N, 1, c, 1)
    after: Tensor | None = None  # from after the token to the chunk's end: (N, c, 1)
    whole: Tensor | None = None  # of the chunk: (n, B·G, 1, 1)

    @classmethod
    def of(cls, decay: Tensor | None, like: Tensor) -> "Decay":
        """decay: logarithms, (n, B, G, c); like: (N, c, D), of the type and device wanted."""
        earlier = like.new_ones(like.shape[1], like.shape[1]).tril(-1)
        if decay is None:
            return cls(earlier[None, None])
        # Differences of sums, in float64: one strong decay would blur all others of the chunk.
        own = decay.double().clamp_min(FLOOR).flatten(0, 2)[..., None]  # (N, c, 1)
        sums = own.cumsum(1)
        before, last = sums - own, sums[:, -1:]
        logarithms = (before - sums.mT, own, before, last - sums, last)
        between, own, before, after, last = (
            x.to(like.dtype).clamp_(FLOOR, 0).exp_() for x in logarithms
        )
        between = between.mul_(earlier)[:, None]
        return cls(between, own, before[:, None], after, last.unflatten(0, (len(decay), -1)))


@dataclass(frozen=True)
class Chunks:
    """A block's tokens, in the memory's type, and what is computed on them in either pass."""

    queries: Tensor  # (N, r·c, D)
    erasers: Tensor | None  # exp(d) k, the delta rule's readers: (N, c, D); None: linear
    writers: Tensor  # w = β k: (N, c, D)
    decay: Decay
    count: int  # n
    scratch: Scratch

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        beta: Tensor,
        decay: Tensor | None,
        erases: bool,
        scratch: Scratch,
    ) -> "Chunks":
        """q: (n, B, H, c, D), k: (n, B, G, c, D), beta and decay: (n, B, G, c); any strides."""
        count, batch, groups, size, width = k.shape
        shape = count * batch * groups, size, width
        queries = scratch("queries", shape[0], q.shape[2] // groups * size, width)
        by_head(queries, q.shape).copy_(q)
        writers = scratch("writers", *shape)
        by_head(writers, k.shape).copy_(k).mul_(beta[..., None])
        factors, erasers = Decay.of(decay, writers), None
        if erases:
            erasers = scratch("erasers", *shape)
            by_head(erasers, k.shape).copy_(k)
            if factors.own is not None:
                erasers.mul_(factors.own)
        return cls(queries, erasers, writers, factors, count, scratch)

    def keys_back(
        self, k: Tensor, beta: Tensor, d_writers: Tensor, d_erasers: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """∂k, (n, B, G, c, D), and ∂β, (n, B, G, c): the way back through `of`.

        k, beta: as there; d_writers and d_erasers, (N, c, D), are overwritten.
        """
        d_keys = by_head(d_writers, k.shape)
        d_beta = torch.mul(d_keys, k, out=self.scratch("dot", *k.shape)).sum(-1)
        d_keys.mul_(beta[..., None])
        if d_erasers is not None:
            if self.decay.own is not None:
                d_erasers.mul_(self.decay.own)
            d_writers.add_(d_erasers)
        return d_keys, d_beta

    def in_turn(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, ·, ·) → n views of (B·G, ·, ·)."""
        return x.unflatten(0, (self.count, -1)).unbind(0)

    def by_token(self, x: Tensor) -> Tensor:
        """(N, r·c, ·) → (N, r, c, ·), a view."""
        return x.unflatten(1, (-1, self.writers.shape[1]))

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """x·y times the decay between, zero unless y's token is before x's.

        x: (N, r·c, ·), y: (N, c, ·) → (N, r·c, c), which holds until the next scores.
        """
        scores = self.scratch("scores", *x.shape[:2], y.shape[1])
        torch.bmm(x, y.mT, out=scores)
        self.by_token(scores).mul_(self.decay.between)
        return scores

    def since_start(self, x: Tensor, name: str) -> Tensor:
        """x, (N, r·c, ·), times the decay from the chunk's start to before the token."""
        if self.decay.before is None:
            return x
        out = self.scratch(name, *x.shape)
        torch.mul(self.by_token(x), self.decay.before, out=self.by_token(out))
        return out

    def to_end(self, x: Tensor, name: str) -> Tensor:
        """x, (N, c, ·), times the decay from after the token to the chunk's end."""
        if self.decay.after is None:
            return x
        return torch.mul(x, self.decay.after, out=self.scratch(name, *x.shape))


def by_head(x: Tensor, shape: torch.Size) -> Tensor:
    """(N, H/G·c, ·), the heads of a group side by side → (n, B, H, c, ·), a view.

    shape: (n, B, H, c, …), the view's but for its last.
    """
    return x.view(*shape[:4], -1)
