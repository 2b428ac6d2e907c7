"""A base's positions, found by asking it: those that its architecture is known to have."""

import pytest
import torch
from torch import Tensor
from transformers import Phi3Config, Phi3ForCausalLM

import infini
from architectures import GROUPED, text, tiny
from infini.errors import InputError
from infini.memory.eviction import block_layout
from infini.model.architectures import CACHE, cache_of
from infini.model.window.attention import install_attention, uninstall_attention
from infini.model.window.install import rotation as rotations
from infini.model.window.rotation import Positions, find_positions


def asked(name: str) -> Positions:
    model = tiny(name)
    install_attention(model)
    try:
        return find_positions(model)
    finally:
        uninstall_attention(model)


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


@pytest.mark.parametrize("retained", [0, 4])
def test_a_window_stays_within_what_one_rotation_is_for(
    retained: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_layout, "RETENTION_BLOCK", 8)
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.5],
        "long_factor": [4.0, 9.0],
    }
    config = Phi3Config(
        **GROUPED, pad_token_id=0, original_max_position_embeddings=128, rope_parameters=rope
    )
    model, most = Phi3ForCausalLM(config), 117 if kept else 124
    message = rf"window \+ sinks: {most + 4} at most .* got {most + 1} \+ 4"
    with pytest.raises(InputError, match=message):
        infini.retrofit(model, "window", window=most + 1, retained=kept)
    for window in (most, 30):
        infini.retrofit(model, "window", window=window, retained=kept)
        with torch.no_grad():
            whole = model(text(1, 200)).logits
            first = model(text(1, 200)[:, :120])
            rest = model(text(1, 200)[:, 120:], **{CACHE: cache_of(first)}).logits
        torch.testing.assert_close(rest, whole[:, 120:], rtol=1e-4, atol=1e-5)
        infini.remove(model)
