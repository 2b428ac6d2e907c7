"""Moments of a layer's queries on some texts, to which `infini.fit_policy` fits a policy."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FUTURE_POSITIONS = 512  # tokens
Rotate = Callable[[Tensor, Tensor], Tensor]  # (B, H, T, D) and positions, (B or 1, T)


@dataclass(frozen=True)
class QueryStatistics:
    """Moments of a layer's queries, without positions.

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

    def rotated(self, x: Tensor) -> Tensor:
        """Return vectors at the positions of the next FUTURE_POSITIONS queries.

        Args:
            x: Vectors of the query heads, (H, n, D).

        Returns:
            The rotated vectors, (H, n, FUTURE_POSITIONS, D).
        """
        repeated = x[:, :, None].expand(-1, -1, FUTURE_POSITIONS, -1)
        if self.rotate is None:
            return repeated
        return self.rotate(repeated, torch.arange(FUTURE_POSITIONS, device=x.device)[None])
