"""Train a memory beside frozen layers: layer(x) + α · infini(x), α learned from its start."""

import torch

from infini import params
from infini.base import load_model
from infini.checkpoint import Checkpoint, fingerprint
from infini.cli import run
from infini.documents import train_on_documents
from infini.record import DOCUMENTS, MODELS, TRAINING, Stopwatch
from infini.surgery import retrofit


def main(version: str) -> None:
    watch = Stopwatch(f"{version}-finetune")
    seed, base, length, recipe = params.read(
        "seed", "base", "data.segment_length", f"adapters.{version}"
    )
    torch.manual_seed(seed)
    model = retrofit(
        load_model(base),
        "parallel",
        segment_length=length,
        alpha=recipe.alpha,
        **recipe.layer.model_dump(),
    )
    settings = [seed, recipe.model_dump(), model.infini_config]
    checkpoint = Checkpoint(f"adapter-{version}", fingerprint(settings, [DOCUMENTS]))
    result, train, val = train_on_documents(
        model, recipe, length, seed, checkpoint, f"{version} adapter"
    )
    model.save_pretrained(MODELS / version / "finetune")
    result.write(TRAINING / version / "finetune", train, val)
    watch.write(seconds_per_epoch=result.seconds_per_epoch)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)
