"""Retention policy `keydiff`: keys that differ most from the mean key.

    score = −cos(k, mean of k ÷ ‖k‖ over all pairs held), keys with positions

KeyDiff (arXiv 2504.15364, equation 5). No attention weights, no state.
"""

import torch.nn.functional as F
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy


@register_policy("keydiff")
class KeyDiff(RetentionPolicy):
    """Retention policy that ranks pairs by how much their key differs from the mean key."""

    def score(self, pairs: HeldPairs) -> Tensor:
        keys = F.normalize(pairs.rotated_keys, dim=-1)  # (B, G, P, D), zero in empty slots
        mean = F.normalize(keys.sum(2, keepdim=True), dim=-1)
        return -(keys * mean).sum(-1)
