"""Train a version once more with a suspect of the research log in it; on demand."""

from infini import params, processes
from infini.console.stage import run
from infini.console.stopwatch import Stopwatch
from infini.evaluation.config import Evaluate
from infini.evaluation.protocols import HeldOutText
from infini.files import write_json
from infini.model.base import load_base, load_tokenizer
from infini.model.config import Base
from infini.paths import AUDITS
from infini.training.audit import run_audit
from infini.training.config import Audit
from infini.training.seeds import TrainingRun


def main(name: str) -> None:
    watch = Stopwatch(f"{name}-audit")
    base, audit = params.read("base", Base), params.read(f"audits.{name}", Audit)
    processes.compute_in(base.precision)
    length = params.read("data.segment_length", int)
    tokenizer = load_tokenizer(base.model, base.revision)
    text = HeldOutText(params.read("evaluate", Evaluate), length, tokenizer)
    model = load_base(base.model, base.revision).to(processes.device())
    job = TrainingRun(name, params.read("seed", int))
    metrics, trainings = run_audit(
        audit, params.audited(audit, params.versions()), model, job, text
    )
    if not processes.is_main():
        return
    write_json(AUDITS / f"{name}.json", metrics)
    watch.write()
    for training in trainings:
        training.checkpoint.remove()


if __name__ == "__main__":
    run(main, parallel=True)
