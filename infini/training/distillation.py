"""Distil a layer into the one that replaces it, on the layer's own inputs.

The teacher's inputs and outputs are computed once; an epoch then runs one layer alone.
MSE on the layer's output over real tokens only; the memory is empty for every sample.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infini import processes
from infini.corpus.pieces import Pieces, shuffled
from infini.evaluation.layer_error import (
    LayerData,
    mean_squared_error,
    record_layer,
    squared_error,
)
from infini.model.architectures import vocabulary_size
from infini.model.modules import infini_parameters, segmented_layers
from infini.model.retrofit import retrofit_with_seed
from infini.model.segmented.config import ReplaceConfig
from infini.paths import SAMPLES
from infini.training.checkpoint import Checkpoint, fingerprint
from infini.training.config import Recipe, retrofit_options
from infini.training.loop import Loss, Task, adamw, fit
from infini.training.seeds import TrainingResult, TrainingRun


def distillation_loss(layer: nn.Module, data: LayerData, chosen: Tensor) -> Iterator[Loss]:
    """The one loss of a batch."""
    tokens = int(data.mask[chosen].sum())
    with processes.autocast():
        total = squared_error(layer, data, processes.share(chosen))
    yield Loss(total, tokens, tokens)


def distill(
    base: PreTrainedModel,
    place: ReplaceConfig,
    recipe: Recipe,
    segment_length: int,
    job: TrainingRun,
    prepared: Callable[[LayerData], LayerData] = lambda data: data,
) -> TrainingResult:
    """Replace a layer of `base`, in place, by one that learns to do what it did.

    prepared: what an audit does to the training data.
    """
    torch.manual_seed(job.seed)
    samples = [
        Pieces.load(SAMPLES / f"{s}.parquet", width=segment_length) for s in ("train", "val")
    ]
    (index,) = place.layers
    words = vocabulary_size(base)
    train, val = (record_layer(base, index, pieces.within(words)) for pieces in samples)
    if not recipe.hold_out:
        train += val
    train = prepared(train)

    model = retrofit_with_seed(base, job.seed, retrofit_options(place, segment_length))
    layer, trained = segmented_layers(model)[index], infini_parameters(model)
    settings = [job.seed, recipe.model_dump(), model.infini_config]
    checkpoint = Checkpoint(job.name, fingerprint(settings, [SAMPLES]))
    task = Task(
        job.title,
        trained,
        [adamw(trained, recipe.lr, recipe.gate_lr)],
        lambda epoch: shuffled(len(train), recipe.batch_size, job.seed + epoch),
        lambda chosen: distillation_loss(layer, train, chosen),
        [-(-len(train) // recipe.batch_size)] * recipe.epochs,
        validate=(lambda: mean_squared_error(layer, val)) if recipe.hold_out else None,
        patience=recipe.patience,
    )
    result = fit(task, checkpoint)
    return TrainingResult(model, result, len(train), len(val) if recipe.hold_out else 0, checkpoint)
