"""Retention policy `snapkv`: the attention of the block's queries, smoothed over neighbours.

    score = average over 5 neighbouring pairs of the mean attention of the block's queries

SnapKV (arXiv 2404.14469, section 4) with the block as its observation window: neighbours are
candidates; beyond the first and the last of them there is no attention. MorphKV (arXiv 2503.00979)
applies the mean while decoding.
"""

import torch.nn.functional as F
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy


@register_policy("snapkv")
class SnapKV(RetentionPolicy):
    """Retention policy that ranks pairs by the pooled attention of the last block.

    Args:
        kernel_size: Number of neighbouring pairs that are averaged, odd.
    """

    attention = "sum"

    def __init__(self, kernel_size: int = 5):
        self.kernel_size = kernel_size

    def score(self, pairs: HeldPairs) -> Tensor:
        assert pairs.block_attention is not None
        mean = pairs.block_attention[:, :, : pairs.num_candidates] / pairs.block_size
        pooled = F.avg_pool1d(mean, self.kernel_size, stride=1, padding=self.kernel_size // 2)
        return F.pad(pooled, (0, pairs.window - 1))
