"""Retention policy `lagkv`: keys and values that stand out from what follows them.

    score = mean of s(K) and s(V),  s(X) = softmax over the block of
            std over dimensions of (x − min) ÷ (max − min), min and max over the next block

LagKV (arXiv 2504.04704, equations 2 to 6). The block is the C tokens that have just left the
window; the next C are still in it, or W − 1 where the window is shorter. A pair's score is fixed
then, and compared with those of other blocks. Keys have their positions, counted from the end of
the block that is being read: minima depend on where positions start. No attention weights.
"""

import torch
from torch import Tensor

from infini.memory.eviction.policy import HeldPairs, RetentionPolicy, register_policy


@register_policy("lagkv")
class LagKV(RetentionPolicy):
    """Retention policy that ranks pairs by their spread, normalised by the block that follows."""

    state = ("score",)

    def score(self, pairs: HeldPairs) -> Tensor:
        C, leaving = pairs.block_size, pairs.leaving
        following = slice(leaving.stop, leaving.stop + C)
        valid = pairs.valid[:, :, leaving]
        spreads = [
            _spread(x[:, :, leaving], x[:, :, following], valid)
            for x in (pairs.relative_keys, pairs.values)
        ]
        score = pairs.state["score"].clone()
        score[:, :, leaving] = (spreads[0] + spreads[1]) / 2
        pairs.state["score"] = score
        return score


def _spread(x: Tensor, following: Tensor, valid: Tensor) -> Tensor:
    """Return s(X): (B, G, C, D), what follows (B, G, up to C, D), valid (B, G, C) → (B, G, C).

    With a window of one token nothing follows: all pairs score alike.
    """
    if not following.shape[2]:
        return torch.zeros_like(x[..., 0])
    low, high = following.amin(2, keepdim=True), following.amax(2, keepdim=True)
    width = (high - low).clamp_min(torch.finfo(x.dtype).eps)
    spread = ((x - low) / width).std(-1)
    return spread.masked_fill(~valid, -torch.inf).softmax(2).nan_to_num(0)
