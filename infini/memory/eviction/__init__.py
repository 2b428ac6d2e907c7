"""KV eviction: which key-value pairs stay in the cache behind a window.

`policy` has the base class of retention policies and their registry. `selection` applies any of
them, with `call_pairs` and `attention_weights`; `pinned` exempts tokens from it, `block_layout` is
the index arithmetic of blocks. Every other file is one policy; importing it here registers its
name.
"""

from infini.memory.eviction.a2sf import A2SF
from infini.memory.eviction.adakv import AdaKV
from infini.memory.eviction.block_layout import BlockLayout, num_recent
from infini.memory.eviction.call_pairs import CallPairs, LayerPolicy
from infini.memory.eviction.cascading import Cascading
from infini.memory.eviction.curdkv import CurDKV
from infini.memory.eviction.decayed_attention import DecayedAttention
from infini.memory.eviction.expected_attention import ExpectedAttention
from infini.memory.eviction.future_regression import FutureRegression
from infini.memory.eviction.h2o import H2O
from infini.memory.eviction.keydiff import KeyDiff
from infini.memory.eviction.knorm import Knorm
from infini.memory.eviction.lagkv import LagKV
from infini.memory.eviction.learned import Learned
from infini.memory.eviction.observed_attention import ObservedAttention
from infini.memory.eviction.oracle import Oracle
from infini.memory.eviction.pinned import PinnedPairs, append_pinned, rotate_pairs
from infini.memory.eviction.policy import (
    HeldPairs,
    LayerSize,
    RetentionPolicy,
    as_policy,
    policy_by_name,
    policy_names,
    register_policy,
)
from infini.memory.eviction.q_filter import QFilter
from infini.memory.eviction.query_statistics import QueryStatistics, Rotate
from infini.memory.eviction.random import Random
from infini.memory.eviction.retained_state import RetainedState
from infini.memory.eviction.rkv import RKV
from infini.memory.eviction.selection import Selection, select
from infini.memory.eviction.snapkv import SnapKV
from infini.memory.eviction.tova import TOVA

__all__ = [
    "A2SF",
    "H2O",
    "RKV",
    "TOVA",
    "AdaKV",
    "BlockLayout",
    "CallPairs",
    "Cascading",
    "CurDKV",
    "DecayedAttention",
    "ExpectedAttention",
    "FutureRegression",
    "HeldPairs",
    "KeyDiff",
    "Knorm",
    "LagKV",
    "LayerPolicy",
    "LayerSize",
    "Learned",
    "ObservedAttention",
    "Oracle",
    "PinnedPairs",
    "QFilter",
    "QueryStatistics",
    "Random",
    "RetainedState",
    "RetentionPolicy",
    "Rotate",
    "Selection",
    "SnapKV",
    "append_pinned",
    "as_policy",
    "num_recent",
    "policy_by_name",
    "policy_names",
    "register_policy",
    "rotate_pairs",
    "select",
]
