"""`probe_attention`: rotary embeddings of a base equal those of its architecture."""

import pytest
import torch
from torch import Tensor
from transformers import Phi3Config, Phi3ForCausalLM

import infini
import infini.model.window.rotation
from architectures import GROUPED, text, tiny
from infini.errors import InputError
from infini.memory.eviction import block_layout
from infini.model.architectures import CACHE, cache_of
from infini.model.window.attention import install_attention, uninstall_attention
from infini.model.window.rotation import AngleMemo, BaseAttentions, probe_attention


def probe(name: str) -> BaseAttentions:
    model = tiny(name)
    install_attention(model)
    try:
        return probe_attention(model)
    finally:
        uninstall_attention(model)


def rotate(x: Tensor, positions: Tensor, width: int, interleaved: bool, theta: float) -> Tensor:
    """Rotate by complex numbers."""
    part, half = x[..., :width], width // 2
    pairs = part.unflatten(-1, (half, 2)) if interleaved else part.unflatten(-1, (2, half)).mT
    angles = positions[:, None, :, None] * theta ** (-torch.arange(half).double() / half)
    z = torch.view_as_complex(pairs.double().contiguous()) * torch.exp(1j * angles)
    pairs = torch.view_as_real(z)
    part = pairs.flatten(-2) if interleaved else pairs.mT.flatten(-2)
    return torch.cat([part.to(x.dtype), x[..., width:]], -1)


@pytest.mark.parametrize(
    ("name", "head", "width", "interleaved", "theta"),
    [
        ("llama", 4, 4, False, 1e4),
        ("phi", 4, 2, False, 1e4),  # half of a head
        ("qwen3", 8, 8, False, 1e4),
        ("glm", 8, 4, True, 1e4),
        ("cohere", 4, 4, True, 5e5),
    ],
)
def test_probed_rotation_equals_the_architectures(
    name: str, head: int, width: int, interleaved: bool, theta: float
) -> None:
    probed = probe(name)
    x, positions = torch.randn(2, 4, 6, head), torch.tensor([[0, 1, 30, -1, -30, 199]] * 2)
    assert not probed.learned_positions
    assert len(probed.modules) == len(probed.qkv) == len(probed.rotations) == 3
    for rotation in probed.rotations:
        assert rotation is not None
        out = rotation(x, positions)
        expected = rotate(x, positions, width, interleaved, theta)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(rotation(out, -positions), x, rtol=1e-4, atol=1e-5)


def test_probed_rotation_has_no_scale() -> None:
    rotation = probe("llama_yarn").rotations[0]
    x = torch.randn(1, 4, 3, 4)
    out = rotation(x, torch.tensor([[0, 5, 90]]))
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(out[:, :, 0], x[:, :, 0])


def test_probed_rotations_differ_by_layer_and_may_be_absent() -> None:
    assert [rotation is None for rotation in probe("smollm3").rotations] == [False, True, False]
    for name in ("gpt2", "opt"):
        probed = probe(name)
        assert probed.learned_positions
        assert probed.rotations == [None] * 3
    probed = probe("gemma3")  # depends on the layer's type
    assert probed.rotations[0].arguments != probed.rotations[1].arguments


def test_unknown_rotation_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        infini.model.window.rotation, "_candidate_rotations", lambda model: iter(())
    )
    with pytest.raises(InputError, match="a position encoding that infini does not support"):
        probe("llama")


def test_angle_memo_tells_rotations_and_positions_apart() -> None:
    one, other = (probe(name).rotations[0] for name in ("llama", "cohere"))
    assert one is not None
    assert other is not None
    x, memo = torch.randn(2, 4, 6, 4), AngleMemo()
    for _ in range(2):  # the second time from the memo
        for rotation in (one, other):
            for positions in (torch.arange(6)[None], torch.arange(-2, 4)[None]):
                expected = rotation(x, positions)
                assert torch.equal(rotation(x, positions, memo), expected)
                both = torch.cat([positions, positions - 1])
                assert torch.equal(rotation(x, both, memo)[:1], expected[:1])


@pytest.mark.parametrize("retained", [0, 4])
def test_window_is_limited_by_the_original_context_of_longrope(
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
    model, most = Phi3ForCausalLM(config), 117 if retained else 124
    message = rf"window \+ sinks must be ≤ {most + 4} .* got {most + 1} \+ 4"
    with pytest.raises(InputError, match=message):
        infini.retrofit(model, "window", window=most + 1, retained=retained)
    for window in (most, 30):
        infini.retrofit(model, "window", window=window, retained=retained)
        with torch.no_grad():
            whole = model(text(1, 200)).logits
            first = model(text(1, 200)[:, :120])
            rest = model(text(1, 200)[:, 120:], **{CACHE: cache_of(first)}).logits
        torch.testing.assert_close(rest, whole[:, 120:], rtol=1e-4, atol=1e-5)
        infini.remove(model)
