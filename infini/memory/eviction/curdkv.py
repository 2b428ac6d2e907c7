"""Retention policy `curdkv`: keys and values of large norm among their neighbours.

    score = (‖k‖² ÷ its sum over 16 neighbours) · (‖v‖² ÷ its sum over 16 neighbours)

CurDKV: value-guided leverage scores (arXiv 2509.15038, section 3), with the local approximation of
`CURPress` of kvpress. A pair's score is fixed when it leaves the window. No attention weights.
"""

import torch
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy

NEIGHBOURS = 16  # pairs


@register_policy("curdkv")
class CurDKV(RetentionPolicy):
    """Retention policy that ranks pairs by the approximate leverage of their key and value."""

    state = ("score",)

    def score(self, pairs: HeldPairs) -> Tensor:
        leaving = pairs.leaving
        share = _share(pairs.keys[:, :, leaving]) * _share(pairs.values[:, :, leaving])
        score = pairs.state["score"].clone()
        score[:, :, leaving] = share
        pairs.state["score"] = score
        return score


def _share(x: Tensor) -> Tensor:
    """Return every ‖x‖² ÷ its sum over aligned neighbours: (B, G, C, D) → (B, G, C)."""
    norms = x.square().sum(-1)
    groups = norms.split(NEIGHBOURS, 2)
    sums = [group.sum(2, keepdim=True).expand_as(group) for group in groups]
    return norms / torch.cat(sums, 2).clamp_min(torch.finfo(norms.dtype).tiny)
