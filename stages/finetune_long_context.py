"""Finetune a distilled version on long documents, the Infini layer only."""

from infini import params
from infini.base import load_model
from infini.checkpoint import Checkpoint, fingerprint
from infini.cli import run
from infini.documents import train_on_documents
from infini.record import DOCUMENTS, MODELS, TRAINING, Stopwatch
from infini.surgery import load


def main(version: str) -> None:
    watch = Stopwatch(f"{version}-finetune")
    seed, base, length, recipe = params.read(
        "seed", "base", "data.segment_length", f"replacements.{version}.finetune"
    )
    distilled = MODELS / version / "distill"
    model = load(distilled, load_model(base))
    settings = [seed, length, recipe.model_dump()]
    checkpoint = Checkpoint(f"finetune-{version}", fingerprint(settings, [distilled, DOCUMENTS]))
    result, train, val = train_on_documents(
        model, recipe, length, seed, checkpoint, f"{version} finetune"
    )
    model.save_pretrained(MODELS / version / "finetune")
    result.write(TRAINING / version / "finetune", train, val)
    watch.write(seconds_per_epoch=result.seconds_per_epoch)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)
