"""Check params.yaml, and record hashes of the base and the corpus; the first stage of every run.

DVC does not look into a folder that a param names: later stages depend on these records instead.
"""

from infini import params
from infini.console.stage import run_stage
from infini.corpus.inputs import file_hashes
from infini.files import write_json
from infini.model.config import Base
from infini.paths import INPUTS


def main() -> None:
    params.check_params()
    base, corpus = params.get("base", Base), params.get("data.corpus", str)
    write_json(
        INPUTS / "base.json",
        {**base.model_dump(exclude={"precision"}), "files": file_hashes(base.model)},
    )
    write_json(INPUTS / "corpus.json", {"corpus": corpus, "files": file_hashes(corpus)})


if __name__ == "__main__":
    run_stage(main)
