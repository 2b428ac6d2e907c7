"""What of the choice of kept pairs matters, untrained: how many, how fast their fame fades.

In nats a token on a study's val documents, beside the base's window of as many exact tokens:

    cd studies/smollm2 && dvc repro prepare_data && PYTHONPATH=../.. python -m benchmarks.eviction
"""

import argparse

import pandas as pd
import torch

from benchmarks import table
from infini import params, processes
from infini.corpus.pieces import Pieces
from infini.evaluation import perplexity
from infini.memory.eviction import DecayedAttention, num_recent
from infini.model.base import load_base
from infini.model.config import Base
from infini.model.forward import memory_mode
from infini.model.retrofit import remove, retrofit, sliding_window
from infini.paths import DOCUMENTS

SINKS = 4
# window, pairs kept, fading a block
CASES = [(64, 128, 0.77), (64, 128, 1.0), (64, 128, 0.3), (64, 32, 0.77)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=2)
    documents = parser.parse_args().documents
    base = params.get("base", Base)
    processes.set_precision(base.precision)
    model, length = load_base(base.model, base.revision), params.get("data.segment_length", int)
    text = Pieces.load(DOCUMENTS / "val.parquet", documents)

    def nats(memory: str = "own") -> float:
        with memory_mode(model, memory):  # type: ignore[arg-type]
            return perplexity.score_documents(model, text, length, memory).mean  # type: ignore[arg-type]

    rows = []
    for window, kept, factor in CASES:
        exact = num_recent(window) + 1 + kept
        with sliding_window(model, exact, SINKS):
            plain = nats()
        policy = DecayedAttention(factor)
        retrofit(
            model, "window", window=window, sinks=SINKS, retained=kept, update="none", policy=policy
        )
        own, other = nats(), nats("swapped")
        remove(model)
        rows.append([window, kept, factor, exact, plain, own, plain - own, other])
    names = ["window", "retained", "fading", "exact tokens", "window of as many", "with kept pairs"]
    found = pd.DataFrame(rows, columns=[*names, "gain", "another document's pairs"]).round(4)
    table.write("eviction", found, f"Nats a token, {len(text)} documents, nothing trained.")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
