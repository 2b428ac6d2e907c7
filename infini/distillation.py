"""Distil a layer into the one that replaces it, on the layer's own inputs.

The teacher's inputs and outputs are computed once; an epoch then runs one layer alone.
MSE on the layer's output over real tokens only; the memory is empty for every sample.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini import engine
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


class _Recorded(Exception):
    """The layer has run: what comes after it is not needed."""


@torch.no_grad()
def record_layer(model: PreTrainedModel, index: int, pieces: Pieces) -> LayerData:
    """Run `pieces` through the base, each alone, up to one layer; keep what passes through it."""
    layer = decoder_layers(model)[index]
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        seen.append((args[0], out[0] if isinstance(out, tuple) else out))
        raise _Recorded

    handle = layer.register_forward_hook(keep)
    try:
        for batch in progress(pieces.batches(BATCH_TOKENS), "teacher"):
            with suppress(_Recorded):
                model.get_decoder()(batch.tokens.to(model.device), use_cache=False)
    finally:
        handle.remove()
    inputs, outputs = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return LayerData(inputs, outputs, pieces.mask)


def squared_error(layer: nn.Module, data: LayerData, chosen: Tensor) -> Tensor:
    """Squared errors, mean over d, summed over the chosen samples' real tokens; scalar."""
    mask = data.mask[chosen]
    if not mask.any():
        return next(layer.parameters()).sum() * 0.0
    packing = Packing.of(len(mask), mask.shape[1], mask)
    with running(layer, Run(packing, mask.shape[1], mask.shape[1])):
        out = layer(data.inputs[chosen])
    error = (out - data.outputs[chosen]).square().mean(-1)  # (n, T)
    return (error * mask.to(error)).sum()


def distillation_loss(layer: nn.Module, data: LayerData, chosen: Tensor) -> Iterator[Loss]:
    """The one loss of a batch."""
    tokens = int(data.mask[chosen].sum())
    with engine.autocast():
        total = squared_error(layer, data, engine.share(chosen))
    yield Loss(total, tokens, tokens)


@torch.no_grad()
def distillation_error(layer: nn.Module, data: LayerData) -> float:
    """Mean squared error over all real tokens of `data`."""
    total = data.inputs.new_zeros(())
    batches = torch.arange(len(data)).split(BATCH_TOKENS // data.mask.shape[1] or 1)
    for chosen in engine.share(batches):
        total += squared_error(layer, data, chosen)
    return engine.total(total).item() / int(data.mask.sum())
