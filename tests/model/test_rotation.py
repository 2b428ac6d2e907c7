"""A base's positions, found by asking it: those that its architecture is known to have."""

import pytest
import torch
from torch import Tensor

from architectures import tiny
from infini.errors import InputError
from infini.model import rotation as rotations
from infini.model.interface import give_back, take_place
from infini.model.rotation import Positions, find_positions


def asked(name: str) -> Positions:
    model = tiny(name)
    take_place(model)
    try:
        return find_positions(model)
    finally:
        give_back(model)


def turned(x: Tensor, positions: Tensor, width: int, neighbours: bool, theta: float) -> Tensor:
    """As complex numbers."""
    part, half = x[..., :width], width // 2
    pairs = part.unflatten(-1, (half, 2)) if neighbours else part.unflatten(-1, (2, half)).mT
    angles = positions[:, None, :, None] * theta ** (-torch.arange(half).double() / half)
    z = torch.view_as_complex(pairs.double().contiguous()) * torch.exp(1j * angles)
    pairs = torch.view_as_real(z)
    part = pairs.flatten(-2) if neighbours else pairs.mT.flatten(-2)
    return torch.cat([part.to(x.dtype), x[..., width:]], -1)


@pytest.mark.parametrize(
    ("name", "head", "width", "neighbours", "theta"),
    [
        ("llama", 4, 4, False, 1e4),
        ("phi", 4, 2, False, 1e4),  # half of a head
        ("qwen3", 8, 8, False, 1e4),
        ("glm", 8, 4, True, 1e4),
        ("cohere", 4, 4, True, 5e5),
    ],
)
def test_rotations_are_the_architectures_own(
    name: str, head: int, width: int, neighbours: bool, theta: float
) -> None:
    found = asked(name)
    x, positions = torch.randn(2, 4, 6, head), torch.tensor([[0, 1, 30, -1, -30, 199]] * 2)
    assert not found.learned
    assert len(found.modules) == len(found.calls) == len(found.rotations) == 3
    for rotation in found.rotations:
        assert rotation is not None
        out = rotation(x, positions)
        expected = turned(x, positions, width, neighbours, theta)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rotation(out, -positions), x, rtol=1e-4, atol=1e-5)


def test_a_scaled_rotation_is_taken_without_its_scale() -> None:
    rotation = asked("llama_yarn").rotations[0]
    x = torch.randn(1, 4, 3, 4)
    out = rotation(x, torch.tensor([[0, 5, 90]]))
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(out[:, :, 0], x[:, :, 0])


def test_layers_differ_and_positions_may_be_in_the_embedding() -> None:
    assert [rotation is None for rotation in asked("smollm3").rotations] == [False, True, False]
    for name in ("gpt2", "opt"):
        found = asked(name)
        assert found.learned
        assert found.rotations == [None] * 3
    found = asked("gemma3")  # by a layer's type
    assert found.rotations[0].arguments != found.rotations[1].arguments


def test_an_unknown_rotation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotations, "_known_rotations", lambda model: iter(()))
    with pytest.raises(InputError, match="positions in a way that infini does not know"):
        asked("llama")
