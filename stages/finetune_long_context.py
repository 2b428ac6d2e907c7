"""Finetune the replaced layers of a version on long documents."""

from infini import params, processes
from infini.console.stage import run_stage
from infini.model.base import load_base
from infini.model.config import Base
from infini.model.loading import load
from infini.training.config import LongRecipe
from infini.training.long_context import train_on_documents
from infini.training.seeds import TrainingResult, TrainingRun, train_seeds


def main(version: str) -> None:
    base = params.get("base", Base)
    processes.set_precision(base.precision)
    length = params.get("data.segment_length", int)
    recipe = params.get(f"replacements.{version}.finetune", LongRecipe)

    def train(run: TrainingRun) -> TrainingResult:
        model = load_base(base.model, base.revision).to(processes.device())
        model = load(run.version.model_folder("distill"), model)
        return train_on_documents(model, recipe, length, run)

    train_seeds(version, "finetune", params.all_seeds(), train)


if __name__ == "__main__":
    run_stage(main, parallel=True)
