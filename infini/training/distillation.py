"""Distillation of a layer into the one that replaces it, on the layer's own inputs.

The layer's inputs and outputs are computed once; an epoch then runs one layer alone. The loss is
the mean squared error of its output over real tokens; the memory is empty for every sample.
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
from infini.model.forward import memory_mode
from infini.model.modules import infini_parameters, parameter_groups, segmented_layers
from infini.model.retrofit import retrofit_with_seed
from infini.model.segmented.config import ReplaceConfig
from infini.paths import SAMPLES
from infini.training.checkpoint import Checkpoint, fingerprint
from infini.training.config import Recipe, retrofit_options
from infini.training.loop import Loss, Task, adamw, fit
from infini.training.seeds import TrainingResult, TrainingRun


def distillation_loss(layer: nn.Module, data: LayerData, chosen: Tensor) -> Iterator[Loss]:
    """Yield the one loss of a batch of samples."""
    tokens = int(data.mask[chosen].sum())
    with processes.autocast():
        total = squared_error(layer, data, processes.local_share(chosen))
    yield Loss(total, tokens, tokens)


def distill(
    base: PreTrainedModel,
    config: ReplaceConfig,
    recipe: Recipe,
    segment_length: int,
    run: TrainingRun,
    prepared: Callable[[LayerData], LayerData] = lambda data: data,
) -> TrainingResult:
    """Replace a layer of the base, in place, by one trained to reproduce it.

    Args:
        base: The untouched base.
        config: The layer, and the one that replaces it.
        recipe: Settings of the training.
        segment_length: Tokens per segment.
        run: Seed and names.
        prepared: Changes the training data (an audit does).

    Returns:
        The trained model.
    """
    torch.manual_seed(run.seed)
    samples = [
        Pieces.load(SAMPLES / f"{s}.parquet", width=segment_length) for s in ("train", "val")
    ]
    assert config.layers is not None  # params.yaml names one
    (index,) = config.layers
    vocabulary = vocabulary_size(base)
    with processes.autocast():
        train, val = (record_layer(base, index, pieces.within(vocabulary)) for pieces in samples)
    if not recipe.hold_out:
        train += val
    train = prepared(train)

    model = retrofit_with_seed(base, run.seed, retrofit_options(config, segment_length))
    layer, trained = segmented_layers(model)[index], infini_parameters(model)
    settings = [run.seed, recipe.model_dump(), model.infini_config]
    checkpoint = Checkpoint(run.checkpoint_name, fingerprint(settings, [SAMPLES]))
    task = Task(
        run.title,
        trained,
        [adamw(*parameter_groups(model), recipe.lr, recipe.gate_lr)],
        lambda epoch: shuffled(len(train), recipe.batch_size, run.seed + epoch),
        lambda chosen: distillation_loss(layer, train, chosen),
        [-(-len(train) // recipe.batch_size)] * recipe.epochs,
        validate=(lambda: mean_squared_error(layer, val)) if recipe.hold_out else None,
        patience=recipe.patience,
    )
    with memory_mode(model, "off"):  # a sample is one segment: no token reads what it would write
        result = fit(task, checkpoint)
    return TrainingResult(model, result, len(train), len(val) if recipe.hold_out else 0, checkpoint)
