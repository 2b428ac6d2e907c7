"""Finetune a distilled version on long documents, the Infini layer only."""

from infini import params
from infini.base import load_model
from infini.cli import run
from infini.documents import train_on_documents
from infini.record import model_folder
from infini.surgery import load
from infini.versions import Trained, train_seeds


def main(version: str) -> None:
    seed, seeds, base, length, recipe = params.read(
        "seed", "seeds", "base", "data.segment_length", f"replacements.{version}.finetune"
    )

    def train(seed: int, title: str) -> Trained:
        model = load(model_folder(version, "distill", seed), load_model(base))
        return train_on_documents(model, recipe, length, seed, title)

    train_seeds(version, "finetune", params.every_seed(seed, seeds), train)


if __name__ == "__main__":
    run(main, parallel=True)
