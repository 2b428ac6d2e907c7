"""The feature map σ(x) = ELU(x) + 1 (arXiv 2006.16236, equation 7), in two forms, and its slope."""

import torch
from torch import Tensor

EPSILON = 1e-6  # floor of a denominator that is a sum of σ(q)·σ(k)


def feature_map(x: Tensor) -> Tensor:
    """σ(x), in float32 at least; differentiable."""
    return torch.nn.functional.elu(x if x.dtype == torch.float64 else x.float()) + 1


def feature_map_into(out: Tensor, x: Tensor, scratch: Tensor) -> None:
    """out = σ(x) = max(x + 1, min(eˣ, 1)): half the time of ELU.

    out: shaped like x; scratch: of at least as many elements, contiguous; both are overwritten.
    """
    exponential = scratch.flatten()[: x.numel()].view(x.shape)
    out.copy_(x)
    torch.exp(out, out=exponential).clamp_(max=1)
    torch.maximum(out.add_(1), exponential, out=out)


def slope_(mapped: Tensor) -> Tensor:
    """σ′ = min(σ, 1), in place of the σ given."""
    return mapped.clamp_(max=1)
