"""Distil a layer into the one that replaces it, on the layer's own inputs.

The teacher's inputs and outputs are computed once; an epoch then runs one layer alone.
MSE on the layer's output over real tokens only; the memory is empty for every sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini.base import decoder_layers
from infini.perplexity import BATCH_TOKENS
from infini.pieces import Pieces
from infini.progress import progress
from infini.ragged import Packing
from infini.segments import Run, running
from infini.training import Loss


@dataclass
class LayerData:
    """What a layer was given and what it made of it."""

    inputs: Tensor  # (n, T, d)
    outputs: Tensor  # (n, T, d)
    mask: Tensor  # real tokens: (n, T), bool

    def __len__(self) -> int:
        return len(self.inputs)

    def __add__(self, other: "LayerData") -> "LayerData":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return LayerData(*map(torch.cat, pairs))


@torch.no_grad()
def record_layer(model: PreTrainedModel, index: int, pieces: Pieces) -> LayerData:
    """Run `pieces` through the base, each alone, and keep what passes through one layer."""
    layer = decoder_layers(model)[index]
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        seen.append((args[0], out[0] if isinstance(out, tuple) else out))

    handle = layer.register_forward_hook(keep)
    try:
        for batch in progress(pieces.batches(BATCH_TOKENS), "teacher"):
            model.get_decoder()(batch.tokens, use_cache=False)
    finally:
        handle.remove()
    inputs, outputs = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return LayerData(inputs, outputs, pieces.mask)


def layer_error(layer: nn.Module, data: LayerData, chosen: Tensor) -> Tensor:
    """Mean squared error of `layer` on the chosen samples (indices), over real tokens; scalar."""
    mask = data.mask[chosen]
    packing = Packing.of(len(mask), mask.shape[1], mask)
    with running(layer, Run(packing, mask.shape[1], mask.shape[1])):
        out = layer(data.inputs[chosen])
    return F.mse_loss(out[mask], data.outputs[chosen][mask])


def distillation_losses(
    layer: nn.Module, data: LayerData, batch_size: int, seed: int
) -> Iterator[Loss]:
    """An epoch's losses, in the order that `seed` gives."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    for chosen in order.split(batch_size):
        yield Loss(layer_error(layer, data, chosen), int(data.mask[chosen].sum()))


@torch.no_grad()
def distillation_error(layer: nn.Module, data: LayerData) -> float:
    """MSE over all of `data`."""
    total, count = 0.0, 0
    for chosen in torch.arange(len(data)).split(BATCH_TOKENS // data.mask.shape[1] or 1):
        tokens = int(data.mask[chosen].sum())
        total, count = total + layer_error(layer, data, chosen).item() * tokens, count + tokens
    return total / count
