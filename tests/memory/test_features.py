"""Feature map in two forms, and its derivative."""

import torch

from infini.memory.features import derivative_, feature_map, feature_map_into


def test_feature_map_into_and_derivative_equal_elu_plus_one() -> None:
    x = torch.linspace(-30, 30, 603, dtype=torch.float64).view(3, -1).mT.requires_grad_()
    expected = feature_map(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    mapped = torch.empty(x.shape, dtype=x.dtype)
    feature_map_into(mapped, x.detach(), torch.empty(700, dtype=x.dtype))
    torch.testing.assert_close(mapped, expected)
    torch.testing.assert_close(derivative_(mapped), gradient)


def test_feature_map_computes_in_float32() -> None:
    assert feature_map(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
