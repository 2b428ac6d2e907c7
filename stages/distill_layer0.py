"""Distil the replaced layer of a version into an Infini layer."""

from infini import params
from infini.base import load_model
from infini.cli import run
from infini.distillation import distill
from infini.versions import Trained, train_seeds


def main(version: str) -> None:
    seed, seeds, base, length, placement, recipe = params.read(
        "seed",
        "seeds",
        "base",
        "data.segment_length",
        f"replacements.{version}.layer",
        f"replacements.{version}.distill",
    )

    def train(seed: int, title: str) -> Trained:
        return distill(load_model(base), placement, recipe, length, seed, title)

    train_seeds(version, "distill", params.every_seed(seed, seeds), train)


if __name__ == "__main__":
    run(main, parallel=True)
