"""Train the embedded base and its tokenizer on the `base` split (see data/base/README.md)."""

from pathlib import Path

from infini import engine, params
from infini.checkpoint import Checkpoint, fingerprint
from infini.cli import run
from infini.corpus import base_texts, read_texts
from infini.pretraining import pretrain
from infini.record import Stopwatch
from infini.splits import split_of

FOLDER = Path("data/base")


def main() -> None:
    watch = Stopwatch("pretrain_base")
    seed, shares, recipe = params.read("seed", "data.shares", "pretrain")
    corpora = dict.fromkeys(corpus for phase in recipe.phases for corpus in phase.corpora)
    texts = {corpus: base_texts(corpus, shares) for corpus in corpora}
    first = recipe.phases[0].corpora[0]
    validation = [text for text in read_texts(first) if split_of(text.id, shares) == "val"]
    checkpoint = Checkpoint(
        "pretrain", fingerprint([seed, shares.model_dump(), recipe.model_dump()], [])
    )
    model, tokenizer, result = pretrain(recipe, seed, texts, validation, checkpoint)
    if not engine.is_main():
        return
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    result.table().to_csv(FOLDER / "curve.csv", index=False)
    watch.write(seconds_per_epoch=result.seconds_per_epoch)
    checkpoint.remove()


if __name__ == "__main__":
    run(main, parallel=True)
