"""Train a version once more with a suspect of the seed log in it; on demand."""

from infini import engine, params
from infini.audit import run_audit
from infini.cli import run
from infini.evaluation import Evaluator
from infini.record import AUDITS, Stopwatch, write_json


def main(name: str) -> None:
    watch = Stopwatch(f"{name}-audit")
    seed, base, length, protocols, replacements, adapters, audit = params.read(
        "seed",
        "base",
        "data.segment_length",
        "evaluate",
        "replacements",
        "adapters",
        f"audits.{name}",
    )
    recipe = params.audited(audit, {**replacements, **adapters})
    evaluator = Evaluator(base, length, protocols)
    metrics, trainings = run_audit(name, audit, recipe, base, seed, evaluator)
    if not engine.is_main():
        return
    write_json(AUDITS / f"{name}.json", metrics)
    watch.write()
    for training in trainings:
        training.checkpoint.remove()


if __name__ == "__main__":
    run(main, parallel=True)
