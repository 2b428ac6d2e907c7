"""Train a memory beside frozen layers: layer(x) + α · infini(x), α learned from its start."""

import torch

from infini import params
from infini.base import load_model
from infini.cli import run
from infini.documents import train_version
from infini.surgery import retrofit


def main(version: str) -> None:
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
    train_version(model, version, recipe, length, seed, inputs=[])


if __name__ == "__main__":
    run(main, parallel=True)
