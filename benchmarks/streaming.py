"""A million tokens through a retrofitted model: time a token and memory against position.

python -m benchmarks.streaming
"""

import time

import pandas as pd
import psutil
import torch
from tqdm import tqdm

import infini
from benchmarks import table
from infini.base import load_model
from infini.params import Base

TOKENS, CHUNK = 2**20, 4096
ROWS = 10  # of the table


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model = load_model(Base(model="data/base"))
    infini.retrofit(model, "parallel", [0], 256, alpha=0.1)
    process, cache, rows = psutil.Process(), None, []
    generator = torch.Generator().manual_seed(0)
    state_after_1k = None
    for start in tqdm(range(0, TOKENS, CHUNK), mininterval=5):
        tokens = torch.randint(model.config.vocab_size, (1, CHUNK), generator=generator)
        sizes = [1024, CHUNK - 1024] if start == 0 else [CHUNK]
        began = time.perf_counter()
        for part in tokens.split(sizes, 1):
            out = model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            state_after_1k = state_after_1k or cache.nbytes
        seconds = time.perf_counter() - began
        rows.append((start, seconds / CHUNK * 1e6, process.memory_info().rss / 2**20))
    figures = pd.DataFrame(rows, columns=["tokens", "µs a token", "resident, MiB"])
    tenth = pd.qcut(figures.index, ROWS, labels=False)
    summary = figures.groupby(tenth).agg(
        {"tokens": "min", "µs a token": "median", "resident, MiB": "max"}
    )
    first, last = summary["µs a token"].iloc[0], summary["µs a token"].iloc[-1]
    resident = figures["resident, MiB"].iloc[len(figures) // ROWS :]
    notes = (
        f"Last tenth over first: {last / first:.3f}. Resident memory after the first tenth within "
        f"{resident.max() - resident.min():.1f} MiB. State: {state_after_1k:,} bytes after 1,024 "
        f"tokens, {cache.nbytes:,} after {TOKENS:,}."
    )
    summary["tokens"] = summary["tokens"].map("from {:,}".format)
    table.write("streaming", summary.round({"µs a token": 1, "resident, MiB": 0}), notes)


if __name__ == "__main__":
    main()
