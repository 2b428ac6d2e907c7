"""The two forms of the feature map, and its slope."""

import torch

from infini.memory.features import feature_map, feature_map_into, slope_


def test_both_forms_and_the_slope_are_those_of_elu_plus_one() -> None:
    x = torch.linspace(-30, 30, 603, dtype=torch.float64).view(3, -1).mT.requires_grad_()
    expected = feature_map(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    mapped = torch.empty(x.shape, dtype=x.dtype)
    feature_map_into(mapped, x.detach(), torch.empty(700, dtype=x.dtype))
    torch.testing.assert_close(mapped, expected)
    torch.testing.assert_close(slope_(mapped), gradient)


def test_low_precision_is_mapped_in_float32() -> None:
    assert feature_map(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
