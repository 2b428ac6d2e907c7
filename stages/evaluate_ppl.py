"""Score the untouched base, or a version with every seed, by every protocol on test text."""

from infini import engine, params
from infini.base import load_model
from infini.cli import run
from infini.evaluation import Evaluator, evaluate_base, evaluate_version, write
from infini.record import Stopwatch


def main(version: str) -> None:
    watch = Stopwatch(f"{version}-evaluate")
    seed, seeds, base, length, protocols = params.read(
        "seed", "seeds", "base", "data.segment_length", "evaluate"
    )
    model, evaluator = load_model(base), Evaluator(base, length, protocols)
    if version == "base":
        evaluations = {seed: evaluate_base(model, evaluator)}
    else:
        evaluations = {
            one: evaluate_version(model, version, one, evaluator)
            for one in params.every_seed(seed, seeds)
        }
    if not engine.is_main():
        return
    write(version, evaluations)
    watch.write()


if __name__ == "__main__":
    run(main, parallel=True)
