"""Mean squared error of a layer against the one that it replaces, on that one's own inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini import processes
from infini.console.progress import progress
from infini.corpus.pieces import Pieces
from infini.evaluation.losses import BATCH_TOKENS
from infini.memory.packing import Packing
from infini.model.architectures import decoder_layers
from infini.model.segmented.run import SegmentedRun, stop_after, use_run


@dataclass
class LayerData:
    """Inputs and outputs of a layer."""

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
    """Run pieces through the base up to one layer and record that layer.

    Args:
        model: The untouched base.
        index: The layer.
        pieces: Text; each piece is read by itself.

    Returns:
        The layer's inputs and outputs.
    """
    layer = decoder_layers(model)[index]
    recorded: list[tuple[Tensor, Tensor]] = []
    for batch in progress(pieces.batches(BATCH_TOKENS), "teacher"):
        with stop_after(layer) as passed:
            model.get_decoder()(batch.tokens.to(model.device), use_cache=False)
        recorded += passed
    inputs, outputs = (torch.cat(parts) for parts in zip(*recorded, strict=True))
    return LayerData(inputs, outputs, pieces.mask)


def squared_error(layer: nn.Module, data: LayerData, chosen: Tensor) -> Tensor:
    """Sum a layer's squared errors over the real tokens of some samples.

    Args:
        layer: The new layer; its memory is empty at the start of every sample.
        data: Inputs and outputs of the layer that it replaces.
        chosen: Indices of samples, (n,).

    Returns:
        Scalar; the mean over d of every token's squared error, summed.
    """
    mask = data.mask[chosen]
    if not mask.any():
        return next(layer.parameters()).sum() * 0.0
    packing = Packing.from_mask(len(mask), mask.shape[1], mask)
    with use_run(SegmentedRun(packing, mask.shape[1], mask.shape[1])):
        out = layer(data.inputs[chosen])
    error = (out - data.outputs[chosen]).square().mean(-1)  # (n, T)
    return (error * mask.to(error)).sum()


@torch.no_grad()
def mean_squared_error(layer: nn.Module, data: LayerData) -> float:
    """Return the mean of `squared_error` over all real tokens of `data`."""
    total = data.inputs.new_zeros(())
    batches = torch.arange(len(data)).split(BATCH_TOKENS // data.mask.shape[1] or 1)
    for chosen in processes.local_share(batches):
        total += squared_error(layer, data, chosen)
    return processes.all_reduce(total).item() / int(data.mask.sum())
