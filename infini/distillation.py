"""Distil a layer into the one that replaces it, on the layer's own inputs.

The teacher's inputs and outputs are computed once; an epoch then runs one layer alone.
MSE on the layer's output over real tokens only; the memory is empty for every sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini import engine
from infini.base import decoder_layers
from infini.checkpoint import Checkpoint, fingerprint
from infini.layers import infini_slots, our_tensors
from infini.losses import BATCH_TOKENS
from infini.params import Distillation, Placement
from infini.pieces import Pieces, shuffled
from infini.progress import progress
from infini.ragged import Packing
from infini.record import SAMPLES
from infini.segments import Run, running, stopping_after
from infini.surgery import replace_layer
from infini.training import Loss, adamw, fit
from infini.versions import Trained


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


def distill(
    base: PreTrainedModel,
    placement: Placement,
    recipe: Distillation,
    segment_length: int,
    seed: int,
    title: str,
) -> Trained:
    """Replace a layer of `base`, in place, by one that learns to do what it did."""
    torch.manual_seed(seed)
    samples = [
        Pieces.load(SAMPLES / f"{s}.parquet", width=segment_length) for s in ("train", "val")
    ]
    (index,) = placement.layers
    train, val = (record_layer(base, index, pieces) for pieces in samples)
    if not recipe.hold_out:
        train += val
    if recipe.padding:
        train = replace(train, mask=torch.ones_like(train.mask))

    model = replace_layer(base, placement, segment_length, seed)
    layer, trained = infini_slots(model)[index], our_tensors(model)
    settings = [seed, recipe.model_dump(), model.infini_config]
    checkpoint = Checkpoint(title.replace(" ", "-"), fingerprint(settings, [SAMPLES]))
    result = fit(
        trained,
        [adamw(trained, recipe.lr, recipe.gate_lr)],
        lambda epoch: shuffled(len(train), recipe.batch_size, seed + epoch),
        lambda chosen: distillation_loss(layer, train, chosen),
        steps=[-(-len(train) // recipe.batch_size)] * recipe.epochs,
        validate=(lambda: distillation_error(layer, val)) if recipe.hold_out else None,
        patience=recipe.patience,
        checkpoint=checkpoint,
        title=title,
    )
    return Trained(model, result, len(train), len(val) if recipe.hold_out else 0, checkpoint)
