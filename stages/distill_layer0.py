"""Distil the replaced layer of a version into an Infini layer; or start from the layers' own."""

from transformers import PreTrainedModel

from infini import params, processes
from infini.console.stage import run
from infini.model.base import load_base
from infini.model.config import Base
from infini.model.retrofit import untrained
from infini.training.config import Recipe, ReplacedLayer
from infini.training.distillation import distill
from infini.training.seeds import TrainingResult, TrainingRun, save_untrained, train_seeds


def main(version: str) -> None:
    base = params.read("base", Base)
    processes.compute_in(base.precision)
    length = params.read("data.segment_length", int)
    place = params.read(f"replacements.{version}.layer", ReplacedLayer)
    recipe = params.read_optional(f"replacements.{version}.distill", Recipe)

    def start(seed: int) -> PreTrainedModel:
        model = load_base(base.model, base.revision)
        return untrained(model, seed, place.retrofit_options(length))

    if recipe is None:
        save_untrained(version, "distill", params.every_seed(), start)
        return

    def train(job: TrainingRun) -> TrainingResult:
        model = load_base(base.model, base.revision).to(processes.device())
        return distill(model, place, recipe, length, job)

    train_seeds(version, "distill", params.every_seed(), train)


if __name__ == "__main__":
    run(main, parallel=True)
