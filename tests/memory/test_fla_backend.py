"""The fla backend equals our own path: its order of tokens here, its kernels on a GPU."""

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from infini.choices import Update
from infini.memory import fla_backend
from infini.memory.recurrent import recurrent_memory
from memory.toy_recurrent import UPDATES, inputs, mixed_padding


def kernel(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, **options: Any
) -> Any:
    """Loop as the kernels are documented: (B, T, H, ·), a token is read after it is written."""
    M, reads = options["initial_state"], []
    for t in range(q.shape[1]):
        if g is not None:
            M = g[:, t].exp()[..., None, None] * M
        v_new = v[:, t]
        if beta is not None:
            v_new = beta[:, t, :, None] * (v_new - torch.einsum("bhd,bhdv->bhv", k[:, t], M))
        M = M + torch.einsum("bhd,bhv->bhdv", k[:, t], v_new)
        reads.append(options["scale"] * torch.einsum("bhd,bhdv->bhv", q[:, t], M))
    return torch.stack(reads, 1), M


def in_pieces(leaves: list[Tensor], update: Update, delay: int) -> list[Tensor]:
    """Reads, matrix and all gradients, of a batch padded on either side in three calls."""
    mask, state, reads = mixed_padding(75).to(leaves[0].device), None, []
    for piece in torch.arange(75).split([1, 30, 44]):
        part = [x[:, :, piece.to(x.device)] for x in leaves]
        out, state = recurrent_memory(
            *part, delay=delay, update=update, state=state, mask=mask[:, piece]
        )
        reads.append(out)
    results = [torch.cat(reads, 2), state.matrix]
    total = sum((x * torch.sin(torch.arange(x.numel()).view_as(x).to(x))).sum() for x in results)
    return results + list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("decays", [False, True])
def test_stream_memory_fla_keeps_the_order_of_reads_and_writes(
    update: Update, decays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, function in (
        ("gated_delta_rule", kernel),
        ("simple_gla", lambda q, k, v, g, **options: kernel(q, k, v, g, None, **options)),
    ):
        module = ModuleType(f"fla.ops.{name}")
        setattr(module, f"chunk_{name}", function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    leaves = list(inputs(75, decays=decays))
    for delay in (1, 6):
        expected = in_pieces(leaves, update, delay)
        with monkeypatch.context() as patch:
            patch.setattr(fla_backend, "is_usable", lambda memory: True)
            torch.testing.assert_close(in_pieces(leaves, update, delay), expected)


@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("fla") is None,
    reason="needs a GPU and the extra gpu",
)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("decays", [False, True])
def test_stream_memory_fla_kernels_equal_ours(
    update: Update, decays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wide(x: Tensor) -> Tensor:  # the kernels take widths from 16 on
        padded = torch.nn.functional.pad(x, (0, 16 - x.shape[-1])) if x.ndim == 4 else x
        return padded.detach().float().cuda().requires_grad_()

    leaves = [wide(x) for x in inputs(75, decays=decays)]
    assert fla_backend.is_usable(leaves[0])
    got = in_pieces(leaves, update, 6)
    monkeypatch.setattr(fla_backend, "is_usable", lambda memory: False)
    for one, other in zip(got, in_pieces(leaves, update, 6), strict=True):
        assert (one - other).abs().max() < 1e-2 * other.abs().max()  # TF32


def test_fla_is_not_used_without_a_gpu() -> None:
    assert not fla_backend.is_usable(torch.zeros(1))
    assert "fla" not in sys.modules
