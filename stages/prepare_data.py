"""Cut a corpus into short samples and long documents, split by document."""

import logging

from infini import params
from infini.console.stage import run_stage
from infini.console.stopwatch import Stopwatch
from infini.corpus.config import Data
from infini.corpus.prepare import prepare, prepared_record, write_pieces
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
    prepared = prepare(read_texts(data.corpus), tokenizer, data)
    write_pieces(prepared.samples, SAMPLES)
    write_pieces(prepared.documents, DOCUMENTS)
    record = prepared_record(prepared, data.segment_length)
    write_json(PREPARED, record)
    for split, count in record["splits"].items():
        log.info("%-5s %s", split, ", ".join(f"{n:,} {what}" for what, n in count.items()))
    if data.corpus != "sotu" and data.shares.base:
        log.info(
            "data.shares.base: %.0f %% of the corpus is used only to train a base; set it to 0.0 "
            "if the base is trained already",
            100 * data.shares.base,
        )
    watch.write()


if __name__ == "__main__":
    run_stage(main)
