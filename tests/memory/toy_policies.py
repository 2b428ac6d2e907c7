"""Reference of every built-in retention policy: its score by a loop over tokens, in float64.

Written from the papers' equations in plain Python numbers and lists; no code is shared with
`infini.memory.eviction`.
"""

import math
from dataclasses import dataclass, field
from statistics import stdev

import torch
from torch import Tensor

from infini.memory.eviction import block_layout
from memory.toy_retained import ReferenceCache

Vector = list[float]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a: Vector) -> float:
    return math.sqrt(dot(a, a))


def mean(numbers: Vector) -> float:
    return sum(numbers) / len(numbers)


def softmax(numbers: dict[int, float]) -> dict[int, float]:
    """Softmax over tokens."""
    largest = max(numbers.values(), default=0)
    powers = {j: math.exp(x - largest) for j, x in numbers.items()}
    return {j: x / sum(powers.values()) for j, x in powers.items()}


def rotation_matrix(width: int, position: int) -> list[Vector]:
    """Matrix of a rotary embedding: dimensions i and i + width / 2 turn by position · θ_i."""
    matrix, half = [[0.0] * width for _ in range(width)], width // 2
    for i in range(half):
        angle = position * 10_000 ** (-i / half)
        matrix[i][i] = matrix[i + half][i + half] = math.cos(angle)
        matrix[i + half][i] = math.sin(angle)
        matrix[i][i + half] = -math.sin(angle)
    return matrix


def product(matrix: list[Vector], vector: Vector) -> Vector:
    return [dot(row, vector) for row in matrix]


def transposed(matrix: list[Vector]) -> list[Vector]:
    return [list(column) for column in zip(*matrix, strict=True)]


def neighbours(x: list[float], i: int, size: int) -> list[float]:
    """Entry i and its neighbours, `size` together, fewer at the ends."""
    return x[max(0, i - size // 2) : i + size // 2 + 1]


@dataclass
class Policy(ReferenceCache):
    """A cache that keeps every query's attention of the block, mean over the query heads."""

    # of the block's queries, in order
    queries: list[dict[int, float]] = field(default_factory=list)

    def add_attention(self, weights: dict[int, Tensor]) -> None:
        self.queries.append({j: mean(weight.tolist()) for j, weight in weights.items()})

    def update_scores(self) -> None:
        pass

    def select(self, start: int) -> None:
        super().select(start)
        self.queries = []

    def key(self, j: int) -> Vector:
        assert self.pairs is not None
        return self.pairs[0][j].tolist()

    def value(self, j: int) -> Vector:
        assert self.pairs is not None
        return self.pairs[1][j].tolist()

    def rotated_key(self, j: int, origin: int = 0) -> Vector:
        """Key with its position, counted from `origin`."""
        key = self.key(j)
        return product(rotation_matrix(len(key), j - origin), key)

    def mean_attention(self, num_queries: int) -> dict[int, float]:
        """Mean attention that the block's last queries paid to a token."""
        queries = self.queries[-num_queries:]
        tokens = {j for query in queries for j in query}
        return {j: mean([query.get(j, 0.0) for query in queries]) for j in tokens}


class Random(Policy):
    """The tokens whose hash is largest among all that have left the window."""

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        def hashed(j: int) -> int:
            x = (j + (self.head + 1) * 0x9E3779B1 + 0x85EBCA77) % 2**64
            for _ in range(2):
                x = ((x ^ x >> 16) * 0x45D9F3B) % 2**32
            return (x ^ x >> 16) % 2**24

        return {j: float(hashed(j)) for j in candidates}


class H2O(Policy):
    """Sum of the attention so far, query by query."""

    decay = 1.0  # of what there is, per query

    def add_attention(self, weights: dict[int, Tensor]) -> None:
        self.scores = {j: self.decay * score for j, score in self.scores.items()}
        for j, weight in weights.items():
            self.scores[j] = self.scores.get(j, 0) + mean(weight.tolist())

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        return {j: self.scores[j] for j in candidates}


class A2SF(H2O):
    """The sum, which decays at every query."""

    decay = 0.99


@dataclass
class ObservedAttention(H2O):
    """Mean of the attention so far, over the queries that a token was seen by."""

    num_queries: dict[int, int] = field(default_factory=dict)

    def add_attention(self, weights: dict[int, Tensor]) -> None:
        super().add_attention(weights)
        for j in weights:
            self.num_queries[j] = self.num_queries.get(j, 0) + 1

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        return {j: self.scores[j] / self.num_queries[j] for j in candidates}


class TOVA(Policy):
    """Attention of the last query, mean over all heads of the layer."""

    def update_scores(self) -> None:
        self.last_query = self.queries[-1]

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        last = [head.last_query for head in self.heads if isinstance(head, TOVA)]
        return {j: mean([query[j] for query in last]) for j in candidates}


class SnapKV(Policy):
    """Mean attention of the block, mean over five neighbouring candidates, zeros at the ends."""

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        attention = self.mean_attention(block_layout.RETENTION_BLOCK)
        received = [attention[j] for j in candidates]
        return {j: sum(neighbours(received, i, 5)) / 5 for i, j in enumerate(candidates)}


class AdaKV(SnapKV):
    """SnapKV's scores: a fifth of K for every head, the rest for the best of all heads."""

    def select(self, start: int) -> None:
        if self is not self.heads[0]:  # which selects for all
            return
        K, ranks = self.num_retained, [cache.ranks(start) for cache in self.heads]
        every = sorted(((rank, g, j) for g, own in enumerate(ranks) for j, rank in own.items()))
        every.reverse()
        stay: list[tuple[int, int]] = []
        for own in range(len(self.heads)):
            stay += [(g, j) for _, g, j in every if g == own][: max(1, K // 5)]
        rest = [(g, j) for _, g, j in every if (g, j) not in stay]
        stay += rest[: K * len(self.heads) - len(stay)]
        for g, cache in enumerate(self.heads):
            cache.retained = sorted(j for own, j in stay if own == g)
            cache.queries = []  # type: ignore[attr-defined]


class KeyDiff(Policy):
    """Difference of a key's direction from the mean direction."""

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        unit = {}
        for j in self.held(start):
            key = self.rotated_key(j)
            unit[j] = [x / norm(key) for x in key]
        anchor = [mean(list(column)) for column in zip(*unit.values(), strict=True)]
        return {j: -dot(unit[j], anchor) / norm(anchor) for j in candidates}


class Knorm(Policy):
    """Small keys."""

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        return {j: -norm(self.key(j)) for j in candidates}


class CurDKV(Policy):
    """Norms of key and value among the 16 tokens that leave the window together."""

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        first = start - self.window + 1 - block_layout.RETENTION_BLOCK
        groups: dict[int, list[int]] = {}
        for j in self.leaving(start):
            groups.setdefault((j - first) // 16, []).append(j)
        for group in groups.values():
            shares = []
            for vector in (self.key, self.value):
                squares = {j: norm(vector(j)) ** 2 for j in group}
                shares.append({j: x / sum(squares.values()) for j, x in squares.items()})
            self.scores |= {j: shares[0][j] * shares[1][j] for j in group}
        return {j: self.scores[j] for j in candidates}


class LagKV(Policy):
    """Spread of key and value, in units of the range of the tokens that follow."""

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        leaving, edge = self.leaving(start), start - self.window + 1
        lag = range(edge, min(edge + block_layout.RETENTION_BLOCK, start))
        parts = []
        for vector in (lambda j: self.rotated_key(j, start), self.value):
            columns = list(zip(*(vector(j) for j in lag), strict=True))
            spread = {
                j: stdev(
                    (x - min(column)) / (max(column) - min(column))
                    for x, column in zip(vector(j), columns, strict=True)
                )
                for j in leaving
            }
            parts.append(softmax(spread))
        self.scores |= {j: (parts[0][j] + parts[1][j]) / 2 for j in leaving}
        return {j: self.scores[j] for j in candidates}


class ExpectedAttention(Policy):
    """Attention of Gaussian queries, times the norm of the value."""

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        held, per_head = self.held(start), []
        mus, sigmas = self.weights["mean"].tolist(), self.weights["covariance"].tolist()
        r = len(mus) // len(self.heads)
        for h in range(self.head * r, (self.head + 1) * r):
            logits = {}
            for j in held:
                key = self.rotated_key(j, start)
                logits[j] = dot(mus[h], key) + dot(key, product(sigmas[h], key)) / 2
            per_head.append(softmax(logits))
        return {
            j: (mean([head[j] for head in per_head]) + 0.01) * norm(self.value(j))
            for j in candidates
        }


class QFilter(Policy):
    """Part of a key along a direction."""

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        direction = self.weights["direction"][self.head].tolist()
        return {j: dot(self.rotated_key(j, start), direction) for j in candidates}


class RKV(Policy):
    """Attention of the last 8 queries, largest of 7 neighbours, less redundancy."""

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        attention = self.mean_attention(8)
        received = [attention[j] for j in candidates]
        keys = {j: self.rotated_key(j) for j in candidates}
        cosine = {
            j: mean([dot(keys[i], keys[j]) / norm(keys[i]) / norm(keys[j]) for i in others])
            for j in candidates
            if (others := [i for i in candidates if i != j])
        }
        redundancy = softmax(cosine or dict.fromkeys(candidates, 0.0))
        return {
            j: 0.07 * max(neighbours(received, i, 7)) - 0.93 * redundancy[j]
            for i, j in enumerate(candidates)
        }


@dataclass
class Cascading(H2O):
    """Four lists of tokens, latest last; a token that a list drops is offered to the next."""

    decay = 0.99
    lists: list[list[int]] = field(default_factory=lambda: [[], [], [], []])
    num_entered: int = 0

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        expired = {j for tokens in self.lists for j in tokens} - set(self.retained)
        self.scores |= dict.fromkeys(expired, 0.0)
        for j in self.leaving(start):
            self.enter(j)
        held = {j for tokens in self.lists for j in tokens}
        return {j: 1.0 for j in candidates if j in held}

    def enter(self, j: int) -> None:
        """Enter one token that has left the window."""
        K = self.num_retained
        self.num_entered += 1
        for level, tokens in enumerate(self.lists):
            size = K * (level + 1) // 4 - K * level // 4
            # all lists take what they are offered until K tokens have entered
            if self.num_entered > K and self.num_entered % 2**level:
                if tokens and self.scores[j] > self.scores[tokens[-1]]:
                    tokens[-1] = j
                return
            tokens.append(j)
            if len(tokens) <= size:
                return
            j = tokens.pop(0)


class Learned(AdaKV):
    """Linear in key, value, age and A2SF's score; heads share their pairs."""

    decay = A2SF.decay
    add_attention = H2O.add_attention

    def score(self, candidates: list[int], start: int) -> dict[int, float]:
        weights = torch.cat([*self.weights.values()], 1)[self.head].tolist()
        return {j: dot(self.features(j, start), weights) for j in candidates}

    def features(self, j: int, start: int) -> Vector:
        age, s = math.log(start - j), math.log(max(self.scores[j], 1e-4))
        return [*self.key(j), *self.value(j), 1, age, s, s * age]


class LearnedNoAttention(Learned):
    """Linear in key, value, age and key at its distance."""

    def features(self, j: int, start: int) -> Vector:
        return [*super().features(j, start)[:-2], *self.rotated_key(j, start)]


class DecayedAttention(ReferenceCache):
    """The default policy, which `ReferenceCache` itself is."""


REFERENCES: dict[str, type[ReferenceCache]] = {
    "a2sf": A2SF,
    "adakv": AdaKV,
    "cascading": Cascading,
    "curdkv": CurDKV,
    "decayed_attention": DecayedAttention,
    "expected_attention": ExpectedAttention,
    "h2o": H2O,
    "keydiff": KeyDiff,
    "knorm": Knorm,
    "lagkv": LagKV,
    "learned": Learned,
    "learned_no_attention": LearnedNoAttention,
    "observed_attention": ObservedAttention,
    "q_filter": QFilter,
    "random": Random,
    "rkv": RKV,
    "snapkv": SnapKV,
    "tova": TOVA,
}
