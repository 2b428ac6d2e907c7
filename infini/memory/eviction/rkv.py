"""Retention policy `rkv`: pairs that get attention and do not repeat each other.

    score = λ · importance − (1 − λ) · redundancy
    importance = mean attention of the block's last 8 queries, largest of 7 neighbouring pairs
    redundancy = softmax over the pairs of the mean cosine of a key to the other keys

R-KV: Redundancy-aware KV Cache Compression for Reasoning Models (arXiv 2505.24133, equations 2 to
6). Neighbours and other keys are those of candidates. The paper does not count the most recent of
the keys that are similar to a key; here all count. No state but the last queries' attention.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy

IMPORTANCE_WEIGHT = 0.07  # λ
POOLED_PAIRS = 7


@register_policy("rkv")
class RKV(RetentionPolicy):
    """Retention policy that ranks pairs by attention, less their redundancy.

    Args:
        importance_weight: λ, between 0 and 1.
    """

    attention = "sum"
    last_queries = 8

    def __init__(self, importance_weight: float = IMPORTANCE_WEIGHT):
        self.importance_weight = importance_weight

    def score(self, pairs: HeldPairs) -> Tensor:
        assert pairs.block_attention is not None
        assert self.last_queries is not None
        scored_tokens = min(pairs.block_size, pairs.block_end - pairs.scoring_start)
        received = pairs.block_attention[:, :, : pairs.num_candidates]
        mean = received / min(self.last_queries, scored_tokens)
        importance = F.max_pool1d(mean, POOLED_PAIRS, stride=1, padding=POOLED_PAIRS // 2)
        redundancy = (1 - self.importance_weight) * _redundancy(pairs)
        score = self.importance_weight * importance - redundancy
        return F.pad(score, (0, pairs.window - 1))


def _redundancy(pairs: HeldPairs) -> Tensor:
    """Return the redundancy of the candidates, (B, G, K + C)."""
    candidates = slice(pairs.num_candidates)
    valid = pairs.valid[:, :, candidates]
    keys = F.normalize(pairs.rotated_keys[:, :, candidates], dim=-1)  # zero in empty slots
    others = keys.sum(2, keepdim=True) - keys
    num_others = (valid.sum(2, keepdim=True) - 1).clamp_min(1)
    mean_cosine = (keys * others).sum(-1) / num_others
    return mean_cosine.masked_fill(~valid, -torch.inf).softmax(2).nan_to_num(0)
