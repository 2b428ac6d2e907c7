"""Score the untouched base or a version by every protocol, on test text."""

from infini import engine, params
from infini.base import load_model
from infini.cli import run
from infini.evaluation import Evaluator, evaluate_base, evaluate_version
from infini.record import METRICS, Stopwatch, write_json


def main(version: str) -> None:
    watch = Stopwatch(f"{version}-evaluate")
    base, length, protocols = params.read("base", "data.segment_length", "evaluate")
    model, evaluator = load_model(base), Evaluator(length, protocols)
    if version == "base":
        metrics = evaluate_base(model, evaluator)
    else:
        metrics = evaluate_version(model, version, evaluator)
    if not engine.is_main():
        return
    write_json(METRICS / f"{version}.json", metrics)
    watch.write()


if __name__ == "__main__":
    run(main, parallel=True)
