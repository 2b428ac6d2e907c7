"""Check params.yaml, and record what other stages depend on; the first stage of every run.

DVC does not look into a folder that a param names: later stages depend on hashes of the base and
the corpus instead. The teacher depends on whether a version needs it, not on all versions' params.
"""

from infini import params
from infini.console.stage import run_stage
from infini.corpus.inputs import file_hashes
from infini.errors import InputError
from infini.files import write_json
from infini.model.config import Base
from infini.paths import CHECKPOINTS, DISTILLATION, INPUTS, POLICIES, RULER


def main() -> None:
    checked = params.check_params()
    check_checkpoints()
    base, corpus = params.get("base", Base), params.get("data.corpus", str)
    write_json(
        INPUTS / "base.json",
        {**base.model_dump(exclude={"precision"}), "files": file_hashes(base.model)},
    )
    write_json(INPUTS / "corpus.json", {"corpus": corpus, "files": file_hashes(corpus)})
    write_json(DISTILLATION, {"needs_teacher": checked.needs_teacher})
    for folder in (POLICIES, RULER):  # compare_report reads them, empty or not
        folder.mkdir(parents=True, exist_ok=True)


def check_checkpoints() -> None:
    """Raise InputError if something else is where trainings put their checkpoints."""
    if CHECKPOINTS.exists() and not CHECKPOINTS.is_dir():
        raise InputError(f"{CHECKPOINTS}: must be a folder, is a file; remove it")
    for path in sorted(CHECKPOINTS.glob("*")):
        if not path.is_file():
            raise InputError(f"{path}: must be a file, is a folder; remove it")


if __name__ == "__main__":
    run_stage(main)
