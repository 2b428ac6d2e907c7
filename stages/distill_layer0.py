"""Distil the replaced layer of a version into an Infini layer."""

from infini import params, processes
from infini.console.stage import run
from infini.model.base import load_base
from infini.model.config import Base
from infini.training.config import Recipe, ReplacedLayer
from infini.training.distillation import distill
from infini.training.seeds import Job, Trained, train_seeds


def main(version: str) -> None:
    base = params.read("base", Base)
    length = params.read("data.segment_length", int)
    place = params.read(f"replacements.{version}.layer", ReplacedLayer)
    recipe = params.read(f"replacements.{version}.distill", Recipe)

    def train(job: Job) -> Trained:
        model = load_base(base.model, base.revision).to(processes.device())
        return distill(model, place, recipe, length, job)

    train_seeds(version, "distill", params.every_seed(), train)


if __name__ == "__main__":
    run(main, parallel=True)
