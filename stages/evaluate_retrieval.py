"""Score RULER's tasks with a retention policy of the untouched base, question after the memory."""

from infini import params, processes
from infini.console.stage import run_stage
from infini.console.stopwatch import Stopwatch
from infini.corpus.pieces import Pieces
from infini.corpus.ruler import ruler_texts
from infini.evaluation.config import Budget, RulerProtocol
from infini.evaluation.policies import policy_reading, write_retrieval
from infini.evaluation.ruler import score_ruler, summarize_ruler
from infini.model.base import load_base, load_tokenizer
from infini.model.config import Base
from infini.paths import DOCUMENTS


def main(policy: str, window_size: str, policy_window: str) -> None:
    watch = Stopwatch(f"{policy}-{window_size}-{policy_window}-retrieval")
    base, recipe = params.get("base", Base), params.get("ruler", RulerProtocol)
    budget = Budget(window_size=int(window_size), policy_window=int(policy_window))
    processes.set_precision("float32")
    tokenizer = load_tokenizer(base.model, base.revision)
    texts = list(ruler_texts(tokenizer, lengths=recipe.lengths, samples=recipe.samples))
    model = load_base(base.model, base.revision).to(processes.device())
    train = Pieces.load(DOCUMENTS / "train.parquet")
    sinks = params.get("evaluate.window.sinks", int)
    with policy_reading(model, policy, budget, train, sinks) as reading:
        scores = score_ruler(reading.model, texts, title=policy)
    write_retrieval(policy, budget, summarize_ruler(scores), reading)
    watch.write()


if __name__ == "__main__":
    run_stage(main)
