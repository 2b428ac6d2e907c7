"""Cut a corpus into short samples and long documents, split by document."""

import logging

from infini import params
from infini.base import load_tokenizer
from infini.cli import run
from infini.corpus import read_texts
from infini.pieces import prepare, write
from infini.record import DOCUMENTS, SAMPLES, SUMMARY, Stopwatch, write_json

log = logging.getLogger(__name__)


def main() -> None:
    watch = Stopwatch("prepare-data")
    base, data = params.read("base", "data")
    tokenizer = load_tokenizer(base)
    samples, documents, counts = prepare(read_texts(data.corpus), tokenizer, data)
    write(samples, SAMPLES)
    write(documents, DOCUMENTS)
    for split, count in counts.items():
        count["samples"] = len(samples.get(split, []))
        count["documents"] = len(documents.get(split, []))
        log.info("%-5s %s", split, ", ".join(f"{n:,} {what}" for what, n in count.items()))
    write_json(SUMMARY, counts)
    watch.write()


if __name__ == "__main__":
    run(main)
