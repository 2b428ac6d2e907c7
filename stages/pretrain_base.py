"""Train the embedded base and its tokenizer on the `base` split (see data/base/README.md)."""

from pathlib import Path

from infini import params, processes
from infini.console.stage import run_stage
from infini.console.stopwatch import Stopwatch
from infini.corpus.config import Shares
from infini.corpus.inputs import file_hashes
from infini.corpus.sources import base_texts, read_texts
from infini.corpus.splits import split_of
from infini.training.checkpoint import Checkpoint, fingerprint
from infini.training.pretraining import pretrain
from infini.training.pretraining_config import Pretrain

FOLDER = Path("data/base")


def main() -> None:
    watch = Stopwatch("pretrain_base")
    seed, shares = params.get("seed", int), params.get("data.shares", Shares)
    recipe = params.get("pretrain", Pretrain)
    corpora = dict.fromkeys(corpus for phase in recipe.phases for corpus in phase.corpora)
    texts = {corpus: base_texts(corpus, shares) for corpus in corpora}
    first = recipe.phases[0].corpora[0]
    validation = [text for text in read_texts(first) if split_of(text.id, shares) == "val"]
    files = [file_hashes(corpus) for corpus in corpora]
    key = fingerprint([seed, shares.model_dump(), recipe.model_dump(), files], [])
    checkpoint = Checkpoint("pretrain", key)
    model, tokenizer, result = pretrain(recipe, seed, texts, validation, checkpoint)
    if not processes.is_main():
        return
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    result.table().to_csv(FOLDER / "curve.csv", index=False)
    watch.write(seconds_per_epoch=result.seconds_per_epoch)
    checkpoint.remove()


if __name__ == "__main__":
    run_stage(main, parallel=True)
