"""Distil a layer into the Infini layer that replaces it; without `distill` write it untrained."""

from transformers import PreTrainedModel

from infini import params, processes
from infini.console.stage import run_stage
from infini.model.base import load_base
from infini.model.config import Base
from infini.model.retrofit import retrofit_with_seed
from infini.model.segmented.config import ReplaceConfig
from infini.training.config import Recipe, retrofit_options
from infini.training.distillation import distill
from infini.training.seeds import TrainingResult, TrainingRun, save_untrained, train_seeds


def main(version: str) -> None:
    base = params.get("base", Base)
    processes.set_precision(base.precision)
    length = params.get("data.segment_length", int)
    config = params.get(f"replacements.{version}.layer", ReplaceConfig)
    recipe = params.get_optional(f"replacements.{version}.distill", Recipe)

    def build(seed: int) -> PreTrainedModel:
        model = load_base(base.model, base.revision)
        return retrofit_with_seed(model, seed, retrofit_options(config, length))

    if recipe is None:
        save_untrained(version, "distill", params.all_seeds(), build)
        return

    def train(run: TrainingRun) -> TrainingResult:
        model = load_base(base.model, base.revision).to(processes.device())
        return distill(model, config, recipe, length, run)

    train_seeds(version, "distill", params.all_seeds(), train)


if __name__ == "__main__":
    run_stage(main, parallel=True)
