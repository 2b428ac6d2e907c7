"""KV eviction: which key-value pairs stay in the cache behind a window.

`policy` has the base class of retention policies and their registry, `selection` applies any of
them, `block_layout` is the index arithmetic of blocks. Every other file is one policy; importing
it here registers its name.
"""

from infini.memory.eviction.block_layout import BlockLayout, num_recent
from infini.memory.eviction.decayed_attention import DecayedAttention
from infini.memory.eviction.policy import (
    HeldPairs,
    RetentionPolicy,
    as_policy,
    policy_by_name,
    policy_names,
    register_policy,
)
from infini.memory.eviction.selection import CallPairs, RetainedState, Selection, select

__all__ = [
    "BlockLayout",
    "CallPairs",
    "DecayedAttention",
    "HeldPairs",
    "RetainedState",
    "RetentionPolicy",
    "Selection",
    "as_policy",
    "num_recent",
    "policy_by_name",
    "policy_names",
    "register_policy",
    "select",
]
