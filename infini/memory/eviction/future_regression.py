"""Fits a learned policy: ridge regression to the attention that pairs receive later.

For each key-value head: features x of a pair at the end of a block, target √(oracle score). The
sums over pairs of x xᵀ and of x · target are all that the solution needs.
"""

import torch
from torch import Tensor

from infini.memory.eviction.a2sf import A2SF
from infini.memory.eviction.learned import Learned
from infini.memory.eviction.oracle import Oracle
from infini.memory.eviction.policy import HeldPairs

RIDGE = 1e-3  # share of a feature's second moment
SMALLEST_MOMENT = 1e-6  # of a feature that is always zero


class FutureRegression(A2SF):
    """Reads texts like `a2sf`, and sums what the ridge regression needs of all pairs it considers.

    This is no policy to retain by: it reads one text at a time, and stores the sums on itself.

    Args:
        policy: What is fitted.
    """

    def __init__(self, policy: Learned):
        super().__init__()
        self.policy = policy
        self.oracle: Oracle | None = None
        """Knows the text that is read next"""
        self.sums: dict[int, Tensor] = {}
        """Sums of x xᵀ over pairs by layer, x the features and the target: (G, F + 1, F + 1)"""
        self.widths: dict[int, dict[str, int]] = {}
        """Number of features by layer and name of their fitted tensor"""

    def score(self, pairs: HeldPairs) -> Tensor:
        assert self.oracle is not None
        score = super().score(pairs)
        target = self.oracle.score(pairs).sqrt()
        features = self.policy.features(pairs)
        self.widths[pairs.layer_index] = {name: x.shape[3] for name, x in features.items()}
        rows = torch.cat([*features.values(), target[..., None]], -1)
        rows = rows[:, :, : pairs.num_candidates]
        rows = rows.where(pairs.valid[:, :, : pairs.num_candidates, None], 0)
        sums = (rows.mT @ rows).sum(0).double()  # (G, F + 1, F + 1)
        self.sums[pairs.layer_index] = self.sums.get(pairs.layer_index, 0) + sums
        return score

    def weights(self, layer: int) -> dict[str, Tensor]:
        """Return the tensors of the fitted policy in a layer."""
        moments, product = self.sums[layer][:, :-1, :-1], self.sums[layer][:, :-1, -1:]
        ridge = torch.diag_embed(RIDGE * moments.diagonal(dim1=1, dim2=2) + SMALLEST_MOMENT)
        solution = torch.linalg.solve(moments + ridge, product)[..., 0].float()  # (G, F)
        widths = self.widths[layer]
        tensors = dict(zip(widths, solution.split(list(widths.values()), 1), strict=True))
        if not product.any():
            # the layer's own sliding window ends before any retained pair: the latest stay
            tensors["scalar"][:, 1] = -1
        return tensors
