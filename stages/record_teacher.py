"""Record the log-probabilities of the untouched base, with full attention, on training text.

The record is empty where no version has `objective: distillation`.
"""

import logging

from infini import params, processes
from infini.console.stage import run_stage
from infini.console.stopwatch import Stopwatch
from infini.corpus.pieces import Pieces
from infini.evaluation.config import FullProtocol
from infini.files import read_json
from infini.model.architectures import vocabulary_size
from infini.model.base import load_base
from infini.model.config import Base
from infini.paths import DISTILLATION, DOCUMENTS, TEACHER
from infini.training.teacher import empty_teacher, record_log_probs

log = logging.getLogger(__name__)


def main() -> None:
    if not read_json(DISTILLATION, "needs_teacher")["needs_teacher"]:
        log.info("no version has objective: distillation, nothing is recorded")
        empty_teacher().save(TEACHER)
        return
    watch = Stopwatch("record_teacher")
    base, full = params.get("base", Base), params.get("evaluate.full", FullProtocol)
    processes.set_precision(base.precision)
    model = load_base(base.model, base.revision).to(processes.device())
    documents = Pieces.load(DOCUMENTS / "train.parquet").within(vocabulary_size(model))
    record_log_probs(model, documents, full).save(TEACHER)
    watch.write()


if __name__ == "__main__":
    run_stage(main)
