"""Distil the replaced layer of a version into an Infini layer."""

import torch

from infini import engine, params
from infini.base import load_model
from infini.checkpoint import Checkpoint, fingerprint
from infini.cli import run
from infini.distillation import distillation_error, distillation_loss, record_layer
from infini.layers import infini_slots, our_tensors
from infini.pieces import Pieces, shuffled
from infini.record import MODELS, SAMPLES, TRAINING, Stopwatch
from infini.surgery import retrofit
from infini.training import adamw, fit


def main(version: str) -> None:
    watch = Stopwatch(f"{version}-distill")
    seed, base, length, placement, recipe = params.read(
        "seed",
        "base",
        "data.segment_length",
        f"replacements.{version}.layer",
        f"replacements.{version}.distill",
    )
    torch.manual_seed(seed)
    train, val = (Pieces.load(SAMPLES / f"{s}.parquet", width=length) for s in ("train", "val"))
    model = load_model(base)
    (index,) = placement.layers
    train_data, val_data = (record_layer(model, index, p) for p in (train, val))
    if not recipe.hold_out:
        train_data += val_data

    retrofit(model, "replace", segment_length=length, init="random", **placement.model_dump())
    layer, trained = infini_slots(model)[index], our_tensors(model)
    settings = [seed, recipe.model_dump(), model.infini_config]
    checkpoint = Checkpoint(f"distill-{version}", fingerprint(settings, [SAMPLES]))
    result = fit(
        trained,
        [adamw(trained, recipe.lr, recipe.gate_lr)],
        lambda epoch: shuffled(len(train_data), recipe.batch_size, seed + epoch),
        lambda chosen: distillation_loss(layer, train_data, chosen),
        steps=[-(-len(train_data) // recipe.batch_size)] * recipe.epochs,
        validate=(lambda: distillation_error(layer, val_data)) if recipe.hold_out else None,
        patience=recipe.patience,
        checkpoint=checkpoint,
        title=f"{version} distill",
    )
    if not engine.is_main():
        return
    held_out = len(val_data) if recipe.hold_out else 0
    model.save_pretrained(MODELS / version / "distill")
    result.write(TRAINING / version / "distill", len(train_data), held_out)
    watch.write(seconds_per_epoch=result.seconds_per_epoch)
    checkpoint.remove()


if __name__ == "__main__":
    run(main, parallel=True)
