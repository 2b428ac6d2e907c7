"""Check params.yaml, and write down what the base and the corpus are; every run begins with it.

DVC sees no change within a folder that a param names, and reports/costs.csv, which a run does
without, is no dependency of the report: later stages depend on what is written.
"""

import hashlib

from infini import params
from infini.console.stage import run
from infini.corpus.inputs import contents
from infini.files import write_json
from infini.model.config import Base
from infini.paths import COSTS, COSTS_LOCK, INPUTS


def main() -> None:
    params.check_params()
    base, corpus = params.get("base", Base), params.get("data.corpus", str)
    measured = [file for file in (COSTS, COSTS_LOCK) if file.is_file()]
    write_json(
        INPUTS / "base.json",
        {**base.model_dump(exclude={"precision"}), "files": contents(base.model)},
    )
    write_json(INPUTS / "corpus.json", {"corpus": corpus, "files": contents(corpus)})
    files = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in measured}
    write_json(INPUTS / "costs.json", {"files": files})


if __name__ == "__main__":
    run(main)
