"""The kernels' path gives what ours gives: its order of tokens here, the kernels on a GPU."""

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from infini.choices import Update
from infini.memory import fla_backend as gpu
from infini.memory.recurrent import recurrent_memory
from memory.toy_recurrent import UPDATES, inputs, mixed_padding


def rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor | None, **how: Any) -> Any:
    """As the kernels are documented: (B, T, H, ·), a token read after it is written."""
    M, reads = how["initial_state"], []
    for t in range(q.shape[1]):
        if g is not None:
            M = g[:, t].exp()[..., None, None] * M
        error = v[:, t]
        if beta is not None:
            error = beta[:, t, :, None] * (error - torch.einsum("bhd,bhdv->bhv", k[:, t], M))
        M = M + torch.einsum("bhd,bhv->bhdv", k[:, t], error)
        reads.append(how["scale"] * torch.einsum("bhd,bhdv->bhv", q[:, t], M))
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
    found = [torch.cat(reads, 2), state.matrix]
    total = sum((x * torch.sin(torch.arange(x.numel()).view_as(x).to(x))).sum() for x in found)
    return found + list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("decays", [False, True])
def test_reads_and_writes_come_in_our_order(
    update: Update, decays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, function in (
        ("gated_delta_rule", rule),
        ("simple_gla", lambda q, k, v, g, **how: rule(q, k, v, g, None, **how)),
    ):
        module = ModuleType(f"fla.ops.{name}")
        setattr(module, f"chunk_{name}", function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    leaves = list(inputs(75, decays=decays))
    for delay in (1, 6):
        expected = in_pieces(leaves, update, delay)
        with monkeypatch.context() as patch:
            patch.setattr(gpu, "usable", lambda memory: True)
            torch.testing.assert_close(in_pieces(leaves, update, delay), expected)


@pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("fla") is None,
    reason="needs a GPU and the extra gpu",
)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("decays", [False, True])
def test_the_kernels_agree(update: Update, decays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def wide(x: Tensor) -> Tensor:  # the kernels want widths of 16 at least
        padded = torch.nn.functional.pad(x, (0, 16 - x.shape[-1])) if x.ndim == 4 else x
        return padded.detach().float().cuda().requires_grad_()

    leaves = [wide(x) for x in inputs(75, decays=decays)]
    assert gpu.usable(leaves[0])
    got = in_pieces(leaves, update, 6)
    monkeypatch.setattr(gpu, "usable", lambda memory: False)
    for one, other in zip(got, in_pieces(leaves, update, 6), strict=True):
        assert (one - other).abs().max() < 1e-2 * other.abs().max()  # TF32


def test_without_a_gpu_the_path_is_ours() -> None:
    assert not gpu.usable(torch.zeros(1))
    assert "fla" not in sys.modules
