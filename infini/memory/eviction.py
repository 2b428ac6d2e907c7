"""Which pairs of key and value a head keeps behind the window: those attended to most of late.

Heavy hitters (H2O, arXiv 2306.14048) whose fame fades (as in TOVA, arXiv 2401.06104, the recent
queries decide). The text is cut into blocks of BLOCK tokens, counted from its start. Behind a
block's last token, of every key-value head on its own:

    score ← FADING · score + the most attention that one of the block's queries paid
    kept  ← the K of the highest score among those kept and those that have left the window

Attention counts from token W + S on, where the window begins to move. A pair further back than the
base's context is dropped, so that positions stay the base's own.

Shapes: as in `kept`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16  # C
FADING = 0.88  # of a score, a block: half is left after 87 tokens


class KeptState(NamedTuple):
    """Of a layer, between two calls; of one size after any number of tokens."""

    keys: Tensor  # (B, G, K, D)
    values: Tensor  # (B, G, K, V)
    positions: Tensor  # from the text's start, int64; -1: no pair there: (B, G, K)
    scores: Tensor  # of the pairs kept, then of the R recent ones: (B, G, K + R)
    attention: Tensor  # that they were paid in the block begun: (B, G, K + R)

    @classmethod
    def empty(cls, k: Tensor, v: Tensor, count: int, recent: int) -> "KeptState":
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

    def numbers(self, positions: Tensor, places: int, before: int) -> Tensor:
        """From the text's start, of the token in each place: (B, G, places).

        positions: of the pairs kept, (B, G, K), which come first; before: places before the new.
        """
        numbers = torch.arange(places, device=positions.device) - before + self.count
        numbers = numbers.expand(*positions.shape[:2], -1).clone()
        numbers[:, :, : positions.shape[2]] = positions
        return numbers

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
        new = (number >= self.count) & (number < self.count + self.tokens)
        return (new & (number >= self.window + self.sinks)).view(-1, BLOCK)


class Choice(NamedTuple):
    """The pairs that every block sees, as places among the P."""

    places: Tensor  # (B, G, N + 1, K): the last for the tokens to come
    there: Tensor  # whether there is a pair: (B, G, N + 1, K)
    scores: Tensor  # (B, G, P)
    attention: Tensor  # (B, G, P)


@torch.no_grad()
def choose(
    q: Tensor, far: Tensor, pairs: Tensor, sinks: Tensor, state: KeptState, sight: Sight
) -> Choice:
    """Block by block.

    q: rotated and scaled, (B, H, T, D); far: the same as the sinks are seen; pairs: keys, rotated,
    (B, G, P, D); sinks: (B, G, S, D).
    """
    with torch.autocast(q.device.type, enabled=False):
        return _choose(q.float(), far.float(), pairs.float(), sinks.float(), state, sight)


def _choose(
    q: Tensor, far: Tensor, pairs: Tensor, sinks: Tensor, state: KeptState, sight: Sight
) -> Choice:
    B, G, P, width = pairs.shape
    K, T, C = state.keys.shape[2], sight.tokens, BLOCK
    # The last block's end may be beyond the last token
    pairs = F.pad(pairs, (0, 0, 0, C))
    scores, attention = (F.pad(x, (0, T + C)) for x in (state.scores, state.attention))
    asked, of_sinks = (
        sight.by_block(x).unflatten(1, (G, -1)).transpose(2, 3).flatten(3, 4) for x in (q, far)
    )  # (B, G, N, r·C, D)
    heads = asked.shape[3] // C
    to_sinks = of_sinks @ sinks.mT[:, :, None]  # (B, G, N, r·C, S)
    to_sinks.masked_fill_(~sight.seen_sinks(q.device).repeat(1, heads, 1), -torch.inf)
    numbers = sight.numbers(state.positions, P + C, P - T)
    hidden = ~sight.seen(q.device).repeat(1, heads, 1)  # (N, r·C, W - 1 + C)
    counted = sight.counted(q.device).repeat(1, heads)[..., None]  # (N, r·C, 1)
    places = torch.arange(K, device=q.device).expand(B, G, -1)
    there = state.positions >= 0
    found = [(places, there)]
    for block in range(sight.blocks):
        low = K + C - 1 - sight.begun + block * C  # of the window
        near = slice(low, low + sight.width)
        index = places[..., None].expand(-1, -1, -1, width)
        keys = torch.cat([pairs.gather(2, index), pairs[:, :, near]], 2)
        logits = asked[:, :, block] @ keys.mT  # (B, G, r·C, K + W - 1 + C)
        logits[..., :K].masked_fill_(~there[:, :, None], -torch.inf)
        logits[..., K:].masked_fill_(hidden[block], -torch.inf)
        weights = torch.cat([to_sinks[:, :, block], logits], -1).softmax(-1)
        paid = (weights.nan_to_num_() * counted[block]).amax(2)[..., sinks.shape[2] :]
        attention[:, :, near] = attention[:, :, near].maximum(paid[..., K:])
        attention.scatter_(2, places, attention.gather(2, places).maximum(paid[..., :K]))
        if sight.first(block + 1) <= sight.count + T:
            scores.mul_(FADING).add_(attention)
            attention.zero_()
            leaving = torch.arange(low, low + C, device=q.device).expand(B, G, -1)
            candidates = torch.cat([places, leaving], 2)
            number = numbers.gather(2, candidates)
            real = torch.cat([there, number[..., K:] >= sight.sinks], 2)
            if sight.reach is not None:
                real &= sight.first(block + 1) + C - number <= sight.reach
            rank = scores.gather(2, candidates).masked_fill(~real, -1)
            best, order = rank.topk(K, -1)
            places, there = candidates.gather(2, order), best >= 0
        found.append((places, there))
    kept, exist = (torch.stack(x, 2) for x in zip(*found, strict=True))
    return Choice(kept, exist, scores[..., :P], attention[..., :P])
