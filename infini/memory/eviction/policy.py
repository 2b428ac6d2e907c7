"""Base class of retention policies, and the registry of their names.

A retention policy scores the key-value pairs of a layer at the end of every block of tokens. The
K highest scores of a key-value head stay in the cache, beside the sinks and the window (KV
eviction: H2O, arXiv 2306.14048; SnapKV, arXiv 2404.14469; kvpress calls it a press). A policy is
one subclass with one method:

    @register_policy("smallest_key_norm")
    class SmallestKeyNorm(RetentionPolicy):
        def score(self, pairs):
            return -pairs.keys.norm(dim=-1)

`selection` handles masks, the learned bias, top-K selection and reading in chunks.

Shapes: B batch, G key-value heads, C tokens of a block, W window, K retained pairs,
P = K + W - 1 + C pairs held at the end of a block, D key width, V value width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

from torch import Tensor

from infini.choices import check_integer
from infini.errors import InputError
from infini.memory.eviction.query_statistics import QueryStatistics


class LayerSize(NamedTuple):
    """Heads of a layer and their widths."""

    heads: int
    """Query heads, H"""
    kv_heads: int
    """Key-value heads, G"""
    key_width: int
    """D"""
    value_width: int
    """V"""


@dataclass
class HeldPairs:
    """Key-value pairs that a layer holds at the end of a block, as a policy sees them.

    The first K are the retained pairs, then come the tokens of the block's window, of which the
    first C have just left it. Both are in order of position, empty slots first. Slots without a
    pair are not `valid`; their keys and values are zero, their scores are ignored.
    """

    positions: Tensor
    """Token positions from the start of the text, int64: (B, G, P)"""
    valid: Tensor
    """True where the slot holds a pair; False for sinks: (B, G, P)"""
    layer_index: int
    """Decoder layer, from 0"""
    num_retained: int
    """K: the first K pairs are retained ones. Where the heads of a layer share their pairs
    (`RetentionPolicy.min_share`), the slots of a head, which are more"""
    block_start: int
    """Position of the block's first token"""
    block_size: int
    """C, tokens"""
    scoring_start: int
    """W + S: attention of earlier queries does not count, since nothing had left the window"""
    block_attention: Tensor | None
    """Attention that the block's queries paid to each pair, reduced as the policy asks: (B, G, P),
    float32; None: the policy needs none"""
    state: dict[str, Tensor]
    """The policy's own floats by name, (B, G, P) each, zero for new pairs; assign to update"""
    weights: Mapping[str, Tensor]
    """The policy's fitted tensors of this layer by name (`RetentionPolicy.weight_shapes`)"""
    gather: Callable[[str], Tensor] = field(repr=False)
    """Returns "keys", "rotated_keys", "relative_keys", "values" or "pair_scores" of all P pairs;
    used by the properties below"""

    @property
    def num_candidates(self) -> int:
        """Number of candidates, K + C: the first K + C pairs, of which K stay."""
        return self.num_retained + self.block_size

    @property
    def block_end(self) -> int:
        """Position after the block's last token."""
        return self.block_start + self.block_size

    @property
    def window(self) -> int:
        """Tokens of the window, W."""
        return self.positions.shape[2] - self.num_retained - self.block_size + 1

    @property
    def leaving(self) -> slice:
        """The C pairs that have just left the window, as a slice of the P pairs."""
        return slice(self.num_retained, self.num_candidates)

    @property
    def num_queries_seen(self) -> Tensor:
        """Number of queries whose attention counts and that could attend to a pair: (B, G, P)."""
        return self.block_end - self.positions.clamp(min=self.scoring_start)

    @cached_property
    def keys(self) -> Tensor:
        """Keys without positions, float32: (B, G, P, D)."""
        return self.gather("keys")

    @cached_property
    def rotated_keys(self) -> Tensor:
        """Keys with the positions of the current call, float32: (B, G, P, D).

        Their angles to each other do not depend on the call, their coordinates do.
        """
        return self.gather("rotated_keys")

    @cached_property
    def relative_keys(self) -> Tensor:
        """Keys with positions counted from the end of the block, float32: (B, G, P, D).

        The next query meets them without a rotation of its own.
        """
        return self.gather("relative_keys")

    @cached_property
    def values(self) -> Tensor:
        """Values, float32: (B, G, P, V)."""
        return self.gather("values")

    @cached_property
    def pair_scores(self) -> Tensor:
        """Scores by `RetentionPolicy.pair_score`, float32: (B, G, P)."""
        return self.gather("pair_scores")


class RetentionPolicy(ABC):
    """Base class of retention policies; override `score`, and the attributes that it needs.

    One policy object serves all layers, so `score` must not store anything on `self`. Per-pair
    values go to `HeldPairs.state`, which follows the pair and is saved with the cache. Tensors that
    are fitted to texts beforehand are declared by `weight_shapes` and computed by `fit`.
    """

    name: str
    """Registered name, which infini_config.json records; the class name if not registered."""

    attention: Literal["max", "sum"] | None = None
    """How attention weights are reduced over a block. "max": over queries and the query heads of
    a group; "sum": over queries, mean over the heads. None: they are not computed."""
    last_queries: int | None = None
    """Number of queries at the end of a block whose attention counts; None: all."""
    query_decay: float = 1.0
    """With "sum": factor per token on the attention of the block's earlier queries (A2SF)."""

    state: tuple[str, ...] = ()
    """Names of the floats that the policy stores per pair."""
    state_covers_window: bool = False
    """Whether the state includes pairs still in the window; False: it starts when they leave."""
    min_share: float | None = None
    """Share of K pairs that every key-value head keeps, where the heads of a layer share their
    pairs (`adakv`); None: every head retains K."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__name__
        _check_attributes(cls, cls.__name__)

    @property
    def stores_attention(self) -> bool:
        """Whether attention received so far in a block is part of the cache.

        That of a block's last query alone is used in the call that computes it.
        """
        return self.attention is not None and self.last_queries != 1

    @property
    def needs_fit(self) -> bool:
        """Whether the policy has tensors that `infini.fit_policy` must fit before it can score."""
        return bool(self.weight_shapes(LayerSize(1, 1, 2, 2)))

    def weight_shapes(self, size: LayerSize) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors of a layer that `infini.fit_policy` fits, by name.

        They are saved with the model, and are no part of the cache.

        Args:
            size: Heads of the layer and their widths.
        """
        return {}

    def fit(self, queries: QueryStatistics) -> dict[str, Tensor]:
        """Fit the tensors that `weight_shapes` names to the queries of a layer on some texts."""
        return {}

    def pair_score(self, keys: Tensor, values: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Score pairs by what never changes: a part of `score` that is computed once a call.

        With it, `score` uses `HeldPairs.pair_scores` instead of keys and values, whose gathering at
        every block takes longer.

        Args:
            keys: Keys of all pairs of the call, without positions, float32: (B, G, n, D).
            values: Their values, (B, G, n, V).
            weights: The policy's fitted tensors of the layer.

        Returns:
            (B, G, n).
        """
        raise NotImplementedError(f"{type(self).__name__} has no method pair_score")

    @abstractmethod
    def score(self, pairs: HeldPairs) -> Tensor:
        """Score all pairs at the end of a block; the highest stay.

        Args:
            pairs: What the layer holds. Keys and values are gathered on access; `block_attention`
                is None unless the class attribute `attention` is set.

        Returns:
            Scores, (B, G, P), any real numbers; -inf: never retain this pair.
        """


def _check_attributes(policy: "RetentionPolicy | type[RetentionPolicy]", name: str) -> None:
    """Raise InputError unless the attributes of a policy or of a class have possible values."""
    if policy.attention not in (None, "max", "sum"):
        raise InputError(f"{name}.attention must be 'max', 'sum' or None, got {policy.attention!r}")
    if not isinstance(policy.state, tuple):
        raise InputError(f"{name}.state must be a tuple of names, got {policy.state!r}")
    if len(set(policy.state)) < len(policy.state):
        raise InputError(f"{name}.state: names must differ, got {policy.state!r}")
    share, decay, last = policy.min_share, policy.query_decay, policy.last_queries
    if share is not None and not (isinstance(share, int | float) and 0 <= share <= 1):
        raise InputError(f"{name}.min_share must be in [0, 1] or None, got {share!r}")
    if not (isinstance(decay, int | float) and 0 < decay <= 1):
        raise InputError(f"{name}.query_decay must be in (0, 1], got {decay!r}")
    if last is not None:
        check_integer(f"{name}.last_queries", last, 1)


RESERVED_NAMES = ("all", "full", "oracle", "window")  # of `bench` and the pipeline
PolicyFactory = Callable[[], RetentionPolicy]
_FACTORIES: dict[str, PolicyFactory] = {}


def register_policy(name: str, factory: PolicyFactory | None = None) -> Any:
    """Register a retention policy under a name, for `retrofit(policy=name)` and for `load`.

    Args:
        name: What infini_config.json records.
        factory: A `RetentionPolicy` subclass, or a function without arguments that returns a
            policy, such as `lambda: MyPolicy(alpha=0.9)`. None: use it as a class decorator.

    Returns:
        `factory`, or the decorator.

    Raises:
        InputError: `name` is no identifier, reserved, or registered for another policy already.

    Examples:
        >>> model = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M")
        >>> @infini.register_policy("smallest_key_norm")
        ... class SmallestKeyNorm(infini.RetentionPolicy):
        ...     def score(self, pairs):
        ...         return -pairs.keys.norm(dim=-1)
        >>> infini.retrofit(model, "window", retained=128, policy="smallest_key_norm")
    """
    if not isinstance(name, str):
        raise InputError(
            f'name must be a string, as in @register_policy("my_policy"), got {name!r}'
        )
    if not name.isidentifier() or name in RESERVED_NAMES:
        raise InputError(
            f"name must consist of letters, digits and _, and be none of "
            f"{', '.join(RESERVED_NAMES)}, got {name!r}"
        )
    if factory is None:
        return partial(register_policy, name)
    _register(name, factory)
    if isinstance(factory, type) and issubclass(factory, RetentionPolicy):
        factory.name = name
    return factory


def _register(name: str, factory: PolicyFactory) -> None:
    """Add a factory; InputError if the name is registered for another factory."""
    known = _FACTORIES.get(name)
    # A module that is loaded again, as in a notebook, replaces its own class.
    if known is not None and _qualified_name(known) != _qualified_name(factory):
        raise InputError(f"policy {name!r} is registered already: choose another name")
    _FACTORIES[name] = factory


def _qualified_name(factory: PolicyFactory) -> tuple[Any, ...]:
    """Return module and name of a factory; of a lambda, whose name tells nothing, its code too."""
    name = getattr(factory, "__qualname__", repr(factory))
    if "<lambda>" not in name:
        return factory.__module__, name
    code = factory.__code__
    closure = tuple(repr(cell.cell_contents) for cell in factory.__closure__ or ())
    return factory.__module__, name, code.co_code, code.co_consts, code.co_names, closure


def policy_names() -> list[str]:
    """Return the registered names, sorted."""
    return sorted(_FACTORIES)


def policy_by_name(name: str) -> RetentionPolicy:
    """Return a new policy of a registered name.

    Raises:
        InputError: No policy has this name, or it is none or has impossible attributes.
    """
    if name not in _FACTORIES:
        raise InputError(
            f"policy must be one of {', '.join(map(repr, policy_names()))}, got {name!r}: "
            "a policy of your own is registered by infini.register_policy(name, cls)"
        )
    policy = _FACTORIES[name]()
    if not isinstance(policy, RetentionPolicy):
        raise InputError(f"policy {name!r}: its factory must return a RetentionPolicy object")
    _check_attributes(policy, name)
    policy.name = name
    return policy


def as_policy(policy: "str | RetentionPolicy") -> RetentionPolicy:
    """Return the policy of a registered name, or the policy object itself.

    Raises:
        InputError: It is neither, or its attributes have impossible values.
    """
    if isinstance(policy, RetentionPolicy):
        _check_attributes(policy, type(policy).__name__)
        return policy
    if not isinstance(policy, str):
        raise InputError(
            f"policy must be a registered name or a RetentionPolicy object, got {policy!r}"
        )
    return policy_by_name(policy)
