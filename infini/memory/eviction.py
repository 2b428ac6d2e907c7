"""Which pairs of key and value a head keeps behind the window: those attended to most of late.

Heavy hitters (H2O, arXiv 2306.14048) whose fame fades (as in TOVA, arXiv 2401.06104, the recent
queries decide). The text is cut into blocks of BLOCK tokens, counted from its start. Behind a
block's last token, of every key-value head on its own:

    score ← FADING · score + the most attention that one of the block's queries paid
    kept  ← the K of the highest rank among those kept and those that have left the window

A pair's rank is its score plus what its favour exceeds MARGIN by: favour is learnt (`kept`) and
does not fade; small ones, as all training leaves, decide nothing. Attention is the softmax of q·k
over all that the query sees: no favour of ours, no cap of the base's in it. It counts from token
W + S on, where the window begins to move; a pair that has had none when it leaves is not kept.
Dropped is a pair that the next block's last token would see from further back than the base's
context, or its own window, so that positions stay the base's own.

Shapes: as in `kept`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.choices import RETENTION_BLOCK

BLOCK = RETENTION_BLOCK  # C
FADING = 0.77  # of a score, a block: half is left after 85 tokens
MARGIN = 0.5  # logits


class RetainedState(NamedTuple):
    """Of a layer, between two calls; of one size after any number of tokens."""

    keys: Tensor  # (B, G, K, D)
    values: Tensor  # (B, G, K, V)
    positions: Tensor  # from the text's start, int64; -1: no pair there: (B, G, K)
    scores: Tensor  # of the pairs kept, then of the R recent ones: (B, G, K + R)
    attention: Tensor  # that they were paid in the block begun: (B, G, K + R)

    @classmethod
    def empty(cls, k: Tensor, v: Tensor, count: int, recent: int) -> "RetainedState":
        """Before the first token; k, v: (B, G, ·, ·)."""
        shape = *k.shape[:2], count
        scores = k.new_zeros(*k.shape[:2], count + recent, dtype=torch.float32)
        return cls(
            k.new_zeros(*shape, k.shape[3]),
            v.new_zeros(*shape, v.shape[3]),
            torch.full(shape, -1, device=k.device),
            scores,
            scores.clone(),
        )


def recent(window: int) -> int:
    """R: how many of the last tokens a layer with kept pairs holds."""
    return window + BLOCK - 2


@dataclass(frozen=True)
class Sight:
    """T new tokens behind `count` others, of all samples alike, in blocks."""

    count: int
    tokens: int  # T
    window: int  # W
    sinks: int  # S
    reach: int | None  # tokens that a pair may be back; None: any
    limit: int | None = None  # the base's own window, in tokens, where it has one

    @property
    def begun(self) -> int:
        """Tokens of the first block that were read before."""
        return self.count % BLOCK

    @property
    def end(self) -> int:
        """Tokens after the new ones."""
        return self.count + self.tokens

    @property
    def blocks(self) -> int:
        """N."""
        return -(-(self.begun + self.tokens) // BLOCK)

    @property
    def width(self) -> int:
        """Tokens from a block's window's start to its end."""
        return self.window - 1 + BLOCK

    def first(self, block: int) -> int:
        """The number of a block's first token."""
        return self.count - self.begun + block * BLOCK

    def by_block(self, x: Tensor) -> Tensor:
        """(B, H, T, ·) → (B, H, N, C, ·), zeros where no new token is."""
        missing = self.blocks * BLOCK - self.begun - self.tokens
        return F.pad(x, (0, 0, self.begun, missing)).unflatten(2, (self.blocks, BLOCK))

    def windows(self, x: Tensor) -> Tensor:
        """(B, G, R + T, ·), the recent and the new → (B, G, N, W - 1 + C, ·)."""
        begin = BLOCK - 1 - self.begun
        size = (self.blocks - 1) * BLOCK + self.width
        x = F.pad(x, (0, 0, 0, max(0, begin + size - x.shape[2])))
        return x[:, :, begin : begin + size].unfold(2, self.width, BLOCK).mT  # a view

    def opened(self, x: Tensor, kept: int) -> Tensor:
        """Of K pairs kept and R recent → of those kept and the first block's window."""
        recents = x[..., kept + BLOCK - 1 - self.begun :]
        return torch.cat([x[..., :kept], F.pad(recents, (0, BLOCK - self.begun))], -1)

    def closed(self, x: Tensor, kept: int) -> Tensor:
        """Of K pairs kept and the window of the block to go on with → of those kept and R recent.

        What has left that window has no figures any more.
        """
        begun = self.end % BLOCK
        recents = x[..., kept : kept + self.window - 1 + begun]
        return torch.cat([x[..., :kept], F.pad(recents, (BLOCK - 1 - begun, 0))], -1)

    def seen(self, device: torch.device) -> Tensor:
        """Which of its window's tokens a block's query sees: (N, C, W - 1 + C)."""
        starts = self.first(0) + BLOCK * torch.arange(self.blocks, device=device)
        key = starts[:, None] - self.window + 1 + torch.arange(self.width, device=device)
        query = starts[:, None] + torch.arange(BLOCK, device=device)
        back = query[..., None] - key[:, None]
        near = (back >= 0) & (key[:, None] >= self.sinks)
        return near if self.limit is None else near & (back < self.limit)

    def seen_sinks(self, device: torch.device) -> Tensor:
        """Which of the sinks a block's query sees: (N, C, S)."""
        query = self.first(0) + torch.arange(self.blocks * BLOCK, device=device).view(-1, BLOCK, 1)
        sink = torch.arange(self.sinks, device=device)
        seen = sink <= query
        edge = self.window + self.sinks - 1  # beyond it sinks are seen as from there
        return seen if self.limit is None else seen & (query.clamp(max=edge) - sink < self.limit)

    def counted(self, device: torch.device) -> Tensor:
        """The queries whose attention counts: (N, C)."""
        number = self.first(0) + torch.arange(self.blocks * BLOCK, device=device)
        new = (number >= self.count) & (number < self.end)
        return (new & (number >= self.window + self.sinks)).view(-1, BLOCK)


class Choice(NamedTuple):
    """The pairs that every block sees, as places among the P; what the state says of the last."""

    places: Tensor  # (B, G, N + 1, K): the last for the tokens to come
    there: Tensor  # whether there is a pair: (B, G, N + 1, K)
    positions: Tensor  # (B, G, K)
    scores: Tensor  # (B, G, K + R)
    attention: Tensor  # (B, G, K + R)


@torch.no_grad()
def choose(
    asked: tuple[Tensor, Tensor],
    pairs: Tensor,
    sinks: Tensor,
    favours: Tensor,
    state: RetainedState,
    sight: Sight,
) -> Choice:
    """Block by block.

    asked: queries, rotated and scaled, (B, H, T, D), and the same as the sinks are seen; pairs:
    keys, rotated, (B, G, P, D); sinks: (B, G, S, D); favours: of the pairs, (B, G, P).
    """
    with torch.autocast(pairs.device.type, enabled=False):
        near, far = (x.float() for x in asked)
        return _choose(near, far, pairs.float(), sinks.float(), favours.float(), state, sight)


def _choose(
    q: Tensor,
    far: Tensor,
    pairs: Tensor,
    sinks: Tensor,
    favours: Tensor,
    state: RetainedState,
    sight: Sight,
) -> Choice:
    B, G, P, width = pairs.shape
    K, S, C = state.keys.shape[2], sinks.shape[2], BLOCK
    asked, of_sinks = (
        sight.by_block(x).unflatten(1, (G, -1)).transpose(2, 3).flatten(3, 4) for x in (q, far)
    )  # (B, G, N, r·C, D)
    heads = asked.shape[3] // C
    to_sinks = of_sinks @ sinks.mT[:, :, None]  # (B, G, N, r·C, S)
    to_sinks.masked_fill_(~sight.seen_sinks(q.device).repeat(1, heads, 1), -torch.inf)
    hidden = ~sight.seen(q.device).repeat(1, heads, 1)  # (N, r·C, W - 1 + C)
    counted = sight.counted(q.device).repeat(1, heads)[..., None]  # (N, r·C, 1)
    lasting = (favours - MARGIN).clamp(min=0)  # (B, G, P)
    windows = sight.windows(pairs[:, :, K:])
    places = torch.arange(K, device=q.device).expand(B, G, -1)
    numbers, there = state.positions, state.positions >= 0
    # Of the pairs kept and of the block's window: (B, G, K + W - 1 + C)
    scores, attention = (sight.opened(x, K) for x in (state.scores, state.attention))
    found = [(places, there)]
    for block in range(sight.blocks):
        kept = pairs.gather(2, places[..., None].expand(-1, -1, -1, width))
        to_kept = (asked[:, :, block] @ kept.mT).masked_fill_(~there[:, :, None], -torch.inf)
        to_window = asked[:, :, block] @ windows[:, :, block].mT
        to_window.masked_fill_(hidden[block], -torch.inf)
        weights = torch.cat([to_sinks[:, :, block], to_kept, to_window], -1).softmax(-1)
        attention = attention.maximum((weights * counted[block]).amax(2)[..., S:])
        if sight.first(block + 1) <= sight.end:  # all of the block has been read
            scores, attention = FADING * scores + attention, torch.zeros_like(attention)
            leaving = sight.first(block) - sight.window + 1 + torch.arange(C, device=q.device)
            numbers = torch.cat([numbers, leaving.expand(B, G, -1)], 2)
            places = torch.cat([places, numbers[..., K:] + P - sight.end], 2)
            leaves = (numbers[..., K:] >= S) & (scores[..., K : K + C] > 0)
            real = torch.cat([there, leaves], 2)
            if sight.reach is not None:
                real &= sight.first(block + 1) + C - numbers <= sight.reach
            ranks = scores[..., : K + C] + lasting.gather(2, places)
            best, order = ranks.where(real, 0).topk(K, -1)
            places, numbers, there = places.gather(2, order), numbers.gather(2, order), best > 0
            own = scores.gather(2, order).where(there, 0)
            scores = torch.cat([own, F.pad(scores[..., K + C :], (0, C))], 2)
        found.append((places, there))
    chosen, exist = (torch.stack(x, 2) for x in zip(*found, strict=True))
    scores, attention = (sight.closed(x, K) for x in (scores, attention))
    return Choice(chosen, exist, numbers.masked_fill(~there, -1), scores, attention)
