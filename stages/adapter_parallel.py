"""Train a memory in frozen layers, or its shuffled-memory control."""

from typing import Literal

from infini import params, processes
from infini.console.stage import run_stage
from infini.model.base import load_base
from infini.model.config import Base
from infini.model.retrofit import retrofit_with_seed
from infini.training.config import Adapter, ParallelAdapter
from infini.training.long_context import (
    fit_retention_policy,
    freeze_alpha,
    train_control,
    train_on_documents,
)
from infini.training.seeds import TrainingResult, TrainingRun, train_seeds


def main(version: str, step: Literal["finetune", "control"] = "finetune") -> None:
    base = params.get("base", Base)
    processes.set_precision(base.precision)
    length = params.get("data.segment_length", int)
    recipe = params.get(f"adapters.{version}", Adapter)
    control = step == "control"

    def train(run: TrainingRun) -> TrainingResult:
        model = load_base(base.model, base.revision).to(processes.device())
        model = retrofit_with_seed(model, run.seed, recipe.retrofit_options(length))
        fit_retention_policy(model, recipe, length)
        if isinstance(recipe, ParallelAdapter) and not recipe.alpha.learn:
            freeze_alpha(model)
        return (train_control if control else train_on_documents)(model, recipe, length, run)

    seeds = [*params.all_seeds(), *recipe.seeds] if recipe.control or not control else []
    train_seeds(version, step, seeds, train)


if __name__ == "__main__":
    run_stage(main, parallel=True)
