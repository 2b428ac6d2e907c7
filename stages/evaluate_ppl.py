"""Score the untouched base, or a version with every seed, by every protocol on test text."""

from infini import params, processes
from infini.console.stage import run_stage
from infini.console.stopwatch import Stopwatch
from infini.evaluation.config import Evaluate
from infini.evaluation.evaluate import evaluate_base, evaluate_seeds, write_evaluations
from infini.evaluation.protocols import HeldOutText
from infini.model.base import load_base, load_tokenizer
from infini.model.config import Base
from infini.paths import Version


def main(version: str) -> None:
    options = {} if version == "base" else params.version_options(version)
    watch = Stopwatch(f"{version}-evaluate")
    base, seed = params.get("base", Base), params.get("seed", int)
    processes.set_precision(base.precision)
    length = params.get("data.segment_length", int)
    tokenizer = load_tokenizer(base.model, base.revision)
    text = HeldOutText(params.get("evaluate", Evaluate), length, tokenizer)
    model = load_base(base.model, base.revision).to(processes.device())
    if version == "base":
        evaluations = {seed: evaluate_base(model, text)}
    else:
        evaluations = evaluate_seeds(model, version, options, text)
    if not processes.is_main():
        return
    write_evaluations(Version(version, seed), evaluations)
    watch.write()


if __name__ == "__main__":
    run_stage(main, parallel=True)
