"""Score a retention policy of the untouched base at the state bytes of a plain window."""

from infini import params, processes
from infini.console.stage import run_stage
from infini.console.stopwatch import Stopwatch
from infini.corpus.pieces import Pieces
from infini.evaluation.config import Budget
from infini.evaluation.policies import DocumentSets, score_policy, write_policy
from infini.model.base import load_base
from infini.model.config import Base
from infini.paths import DOCUMENTS


def main(policy: str, window_size: str, policy_window: str) -> None:
    watch = Stopwatch(f"{policy}-{window_size}-{policy_window}-evaluate")
    base = params.get("base", Base)
    budget = Budget(window_size=int(window_size), policy_window=int(policy_window))
    processes.set_precision("float32")  # differences between policies are small
    limit = params.get_optional("evaluate.documents", int)
    documents = DocumentSets(
        train=Pieces.load(DOCUMENTS / "train.parquet"),
        val=Pieces.load(DOCUMENTS / "val.parquet"),
        test=Pieces.load(DOCUMENTS / "test.parquet", limit),
        segment_length=params.get("data.segment_length", int),
    )
    model = load_base(base.model, base.revision).to(processes.device())
    sinks = params.get("evaluate.window.sinks", int)
    table = score_policy(model, policy, budget, documents, sinks)
    if processes.is_main():
        write_policy(policy, budget, table)
        watch.write()


if __name__ == "__main__":
    run_stage(main, parallel=True)
