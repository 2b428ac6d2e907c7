"""Cut a corpus into short samples and long documents, split by document."""

import logging

from infini import params
from infini.console.stage import run
from infini.console.stopwatch import Stopwatch
from infini.corpus.config import Data
from infini.corpus.prepare import prepare, write
from infini.corpus.sources import read_texts
from infini.files import write_json
from infini.model.base import load_tokenizer
from infini.model.config import Base
from infini.paths import DOCUMENTS, PREPARED, SAMPLES

log = logging.getLogger(__name__)


def main() -> None:
    watch = Stopwatch("prepare-data")
    base, data = params.get("base", Base), params.get("data", Data)
    tokenizer = load_tokenizer(base.model, base.revision)
    samples, documents, counts = prepare(read_texts(data.corpus), tokenizer, data)
    write(samples, SAMPLES)
    write(documents, DOCUMENTS)
    for split, count in counts.items():
        count["samples"] = len(samples.get(split, []))
        count["documents"] = len(documents.get(split, []))
        log.info("%-5s %s", split, ", ".join(f"{n:,} {what}" for what, n in count.items()))
    if data.corpus != "sotu" and data.shares.base:
        log.info(
            "data.shares.base: %.0f %% of your text is left for training a base of its own, and "
            "used for nothing else; with a base that has not seen it, set data.shares.base=0.0",
            100 * data.shares.base,
        )
    write_json(PREPARED, counts)
    watch.write()


if __name__ == "__main__":
    run(main)
