"""Train a memory beside frozen layers: layer(x) + α · infini(x), α learned from its start."""

from infini import params
from infini.base import load_model
from infini.cli import run
from infini.documents import train_on_documents
from infini.surgery import add_adapter
from infini.versions import Trained, train_seeds


def main(version: str) -> None:
    seed, seeds, base, length, recipe = params.read(
        "seed", "seeds", "base", "data.segment_length", f"adapters.{version}"
    )

    def train(seed: int, title: str) -> Trained:
        model = add_adapter(load_model(base), recipe, length, seed)
        return train_on_documents(model, recipe, length, seed, title)

    train_seeds(version, "finetune", params.every_seed(seed, seeds), train)


if __name__ == "__main__":
    run(main, parallel=True)
