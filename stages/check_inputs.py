"""Check params.yaml, and write down what the base and the corpus are; every run begins with it.

DVC sees no change within a folder that a param names, and the audits' results, which a run does
without, are no deps of the report: later stages depend on what is written.
"""

import hashlib

from infini import params
from infini.console.stage import run
from infini.corpus.inputs import contents
from infini.files import write_json
from infini.model.config import Base
from infini.paths import AUDITS, AUDITS_LOCK, COSTS, INPUTS


def main() -> None:
    params.check()
    base, corpus = params.read("base", Base), params.read("data.corpus", str)
    audits = (AUDITS_LOCK, COSTS, *sorted(AUDITS.glob("*.json")))
    found = {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in audits if f.is_file()}
    write_json(
        INPUTS / "base.json",
        {**base.model_dump(exclude={"precision"}), "files": contents(base.model)},
    )
    write_json(INPUTS / "corpus.json", {"corpus": corpus, "files": contents(corpus)})
    write_json(INPUTS / "audits.json", {"files": found})


if __name__ == "__main__":
    run(main)
