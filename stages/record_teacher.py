"""Record the log-probabilities of the untouched base, with full attention, on training text."""

from infini import params, processes
from infini.console.stage import run_stage
from infini.console.stopwatch import Stopwatch
from infini.corpus.pieces import Pieces
from infini.evaluation.config import FullProtocol
from infini.model.architectures import vocabulary_size
from infini.model.base import load_base
from infini.model.config import Base
from infini.paths import DOCUMENTS, TEACHER
from infini.training.teacher import record_log_probs


def main() -> None:
    watch = Stopwatch("record_teacher")
    base, full = params.get("base", Base), params.get("evaluate.full", FullProtocol)
    processes.set_precision(base.precision)
    model = load_base(base.model, base.revision).to(processes.device())
    documents = Pieces.load(DOCUMENTS / "train.parquet").within(vocabulary_size(model))
    record_log_probs(model, documents, full).save(TEACHER)
    watch.write()


if __name__ == "__main__":
    run_stage(main)
