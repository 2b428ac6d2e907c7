"""Check params.yaml, and write down what the base and the corpus are; every run begins with it.

DVC sees no change within a folder that a param names: later stages depend on what is written.
"""

from infini import params
from infini.console.stage import run
from infini.corpus.inputs import contents
from infini.model.config import Base
from infini.paths import INPUTS, write_json


def main() -> None:
    params.check()
    base, corpus = params.read("base", Base), params.read("data.corpus", str)
    write_json(INPUTS / "base.json", {**base.model_dump(), "files": contents(base.model)})
    write_json(INPUTS / "corpus.json", {"corpus": corpus, "files": contents(corpus)})


if __name__ == "__main__":
    run(main)
