"""Feature map σ(x) = ELU(x) + 1 (arXiv 2006.16236, equation 7), and its derivative."""

import torch
from torch import Tensor

EPSILON = 1e-6  # floor of a denominator that is a sum of σ(q)·σ(k)


def feature_map(x: Tensor) -> Tensor:
    """Compute σ(x), in float32 at least; differentiable."""
    return torch.nn.functional.elu(x if x.dtype == torch.float64 else x.float()) + 1


def feature_map_into(out: Tensor, x: Tensor, scratch: Tensor) -> None:
    """Write σ(x) = max(x + 1, min(eˣ, 1)) to `out`, in half the time of ELU.

    Args:
        out: Result, shaped like x.
        x: Any tensor.
        scratch: Contiguous memory of at least as many elements; it is overwritten.
    """
    exponential = scratch.flatten()[: x.numel()].view(x.shape)
    out.copy_(x)
    torch.exp(out, out=exponential).clamp_(max=1)
    torch.maximum(out.add_(1), exponential, out=out)


def derivative_(mapped: Tensor) -> Tensor:
    """Compute σ′ = min(σ, 1) in place, given σ."""
    return mapped.clamp_(max=1)
