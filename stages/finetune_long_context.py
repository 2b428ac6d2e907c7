"""Finetune a distilled version on long documents, the Infini layer only."""

from infini import params
from infini.base import load_model
from infini.cli import run
from infini.documents import train_version
from infini.record import MODELS
from infini.surgery import load


def main(version: str) -> None:
    seed, base, length, recipe = params.read(
        "seed", "base", "data.segment_length", f"replacements.{version}.finetune"
    )
    distilled = MODELS / version / "distill"
    model = load(distilled, load_model(base))
    train_version(model, version, recipe, length, seed, inputs=[distilled])


if __name__ == "__main__":
    run(main, parallel=True)
