"""Effect of the number of retained pairs and of score decay, without training.

In nats per token on a study's val documents, beside a plain sliding window of equal state bytes:

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
# window, retained pairs, score decay per block
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
    for window, retained, score_decay in CASES:
        exact = num_recent(window) + 1 + retained
        with sliding_window(model, exact, SINKS):
            plain = nats()
        options = {"window": window, "sinks": SINKS, "retained": retained, "update": "none"}
        retrofit(model, "window", **options, policy=DecayedAttention(score_decay))
        own, other = nats(), nats("swapped")
        remove(model)
        rows.append([window, retained, score_decay, exact, plain, own, plain - own, other])
    names = ["window", "retained", "score decay", "exact tokens", "plain window", "retained pairs"]
    rows = pd.DataFrame(rows, columns=[*names, "gain", "shuffled pairs"]).round(4)
    table.write("eviction", rows, f"Nats per token, {len(text)} documents, untrained.")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
