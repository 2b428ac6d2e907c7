"""How far a layer is from the one it is to replace, on that one's own inputs."""

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
from infini.model.segmented.run import Run, running
from infini.model.segmented.segments import stopping_after


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
    """Run `pieces` through the base, each alone, up to one layer; keep what passes through it."""
    layer = decoder_layers(model)[index]
    seen: list[tuple[Tensor, Tensor]] = []
    for batch in progress(pieces.batches(BATCH_TOKENS), "teacher"):
        with stopping_after(layer) as passed:
            model.get_decoder()(batch.tokens.to(model.device), use_cache=False)
        seen += passed
    inputs, outputs = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return LayerData(inputs, outputs, pieces.mask)


def squared_error(layer: nn.Module, data: LayerData, chosen: Tensor) -> Tensor:
    """Squared errors, mean over d, summed over the chosen samples' real tokens; scalar.

    chosen: (n,) indices. The memory is empty for every sample.
    """
    mask = data.mask[chosen]
    if not mask.any():
        return next(layer.parameters()).sum() * 0.0
    packing = Packing.of(len(mask), mask.shape[1], mask)
    with running(layer, Run(packing, mask.shape[1], mask.shape[1])):
        out = layer(data.inputs[chosen])
    error = (out - data.outputs[chosen]).square().mean(-1)  # (n, T)
    return (error * mask.to(error)).sum()


@torch.no_grad()
def mean_squared_error(layer: nn.Module, data: LayerData) -> float:
    """Mean over all real tokens of `data`."""
    total = data.inputs.new_zeros(())
    batches = torch.arange(len(data)).split(BATCH_TOKENS // data.mask.shape[1] or 1)
    for chosen in processes.share(batches):
        total += squared_error(layer, data, chosen)
    return processes.total(total).item() / int(data.mask.sum())
