"""What `infini.fit_policy` records of a layer's queries, for policies that are fitted to texts."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Rotate = Callable[[Tensor, Tensor], Tensor]  # (B, H, T, D) and positions, (B or 1, T)


@dataclass(frozen=True)
class QueryStatistics:
    """Moments of a layer's queries without positions.

    Shapes: H query heads, G key-value heads, D key width.
    """

    mean: Tensor
    """Mean of the queries times the scale of the attention, float32: (H, D)"""
    second_moment: Tensor
    """Mean of q qᵀ of these queries, float32: (H, D, D)"""
    kv_heads: int
    """Key-value heads, G"""
    rotate: Rotate | None
    """The layer's rotary embedding; None: it has none"""

    def rotated(self, x: Tensor, num_positions: int) -> Tensor:
        """Return vectors at the positions 0, 1, … of the next queries.

        Args:
            x: Vectors of the query heads, (H, n, D).
            num_positions: T.

        Returns:
            The rotated vectors, (H, n, T, D).
        """
        repeated = x[:, :, None].expand(-1, -1, num_positions, -1)
        if self.rotate is None:
            return repeated
        return self.rotate(repeated, torch.arange(num_positions, device=x.device)[None])
