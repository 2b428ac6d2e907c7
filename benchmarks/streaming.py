"""A million tokens through a retrofitted model: time a token and memory against position.

Each call is timed beside one of the same tokens with an empty memory, which sees the same
machine at the same moment: their ratio is what position costs.

python -m benchmarks.streaming
"""

import time

import pandas as pd
import torch
from tqdm import tqdm

import infini
from benchmarks import table
from infini.evaluation.peak_memory import high_water
from infini.model.architectures import CACHE, cache_of
from infini.model.base import load_base
from infini.model.cache import InfiniCache

TOKENS, CHUNK = 2**20, 4096
ROWS = 10  # of the table


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    model = load_base("data/base")
    infini.retrofit(model, "parallel", [0], 256, alpha=0.1)
    rows = []
    cache: InfiniCache | None = None
    generator = torch.Generator().manual_seed(0)
    state_after_1k = None

    def read(tokens: torch.Tensor, cache: InfiniCache | None) -> tuple[InfiniCache, float]:
        began = time.perf_counter()
        out = model(tokens, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
        return cache_of(out), time.perf_counter() - began

    for start in tqdm(range(0, TOKENS, CHUNK), mininterval=5):
        tokens = torch.randint(model.config.vocab_size, (1, CHUNK), generator=generator)
        if state_after_1k is None:
            state_after_1k = read(tokens[:, :1024], None)[0].nbytes
        cache, seconds = read(tokens, cache)
        _, fresh = read(tokens, None)
        rows.append((start, seconds / CHUNK * 1e6, seconds / fresh, high_water()))
    columns = ["tokens", "µs a token", "of a fresh call", "most memory so far, MiB"]
    figures = pd.DataFrame(rows, columns=columns)
    tenth = figures.groupby(pd.qcut(figures.index, ROWS, labels=False))
    summary = tenth.median()
    summary["tokens"] = tenth["tokens"].min().map("from {:,}".format)
    summary[columns[-1]] = tenth[columns[-1]].max()
    ratio, memory = summary["of a fresh call"], summary[columns[-1]]
    notes = (
        f"Last tenth over first: {ratio.iloc[-1] / ratio.iloc[0]:.3f}, each against fresh calls. "
        f"The process grows by {memory.iloc[-1] - memory.iloc[0]:.1f} MiB after the first tenth. "
        f"State: {state_after_1k:,} bytes after 1,024 tokens, {cache.nbytes:,} after {TOKENS:,}."
    )
    rounded = summary.round({"µs a token": 1, "of a fresh call": 3, columns[-1]: 0})
    table.write("streaming", rounded, notes)


if __name__ == "__main__":
    main()
