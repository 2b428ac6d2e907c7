"""Time per token and memory of a retrofitted model by position, on a million tokens.

Each call is timed beside one of the same tokens with an empty memory, on the same machine at the
same moment: their ratio is what position costs.

    python -m benchmarks.streaming [--method window] [--threads 1] [--cpu-time]
"""

import argparse
import time
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

import infini
from benchmarks import table, window
from infini.evaluation.peak_memory import peak_memory
from infini.model.architectures import CACHE, cache_of
from infini.model.base import load_base
from infini.model.segmented.cache import SegmentedCache
from infini.model.window.cache import WindowCache

TOKENS, CHUNK = 2**20, 4096
ROWS = 10  # of the table
COLUMNS = ["tokens", "µs per token", "÷ fresh call", "peak memory so far, MiB"]


def parallel_model() -> tuple[PreTrainedModel, str]:
    """Return the embedded base with a memory parallel to layer 0, and a note."""
    model = load_base("data/base")
    return infini.retrofit(model, "parallel", [0], 256, alpha=0.1), ""


def window_model() -> tuple[PreTrainedModel, str]:
    """Return one layer of SmolLM2's sizes with window and memory, and a note on its state."""
    memory = 4 * window.GROUPS * window.WIDTH**2
    exact = 2 * 4 * window.GROUPS * window.WIDTH * (window.WINDOW - 1 + window.SINKS)
    note = (
        f" State bytes of a layer: 4·G·D² = {memory:,} of memory, and {exact:,} of keys and "
        f"values, of {window.SINKS} sinks and {window.WINDOW - 1} tokens of the window. "
        f"SmolLM2 has 30 such layers: {30 * memory:,} bytes of memory."
    )
    return window.one_layer("gated_delta"), note


@torch.no_grad()
def stream(model: PreTrainedModel, clock: Callable[[], float]) -> tuple[pd.DataFrame, str]:
    """Return rows by position, and a note that sums them up."""
    rows = []
    cache: SegmentedCache | WindowCache | None = None
    generator = torch.Generator().manual_seed(0)

    def read(
        tokens: Tensor, cache: SegmentedCache | WindowCache | None
    ) -> tuple[SegmentedCache | WindowCache, float]:
        start = clock()
        out = model(tokens, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
        return cache_of(out), clock() - start

    def draw(tokens: int) -> Tensor:
        return torch.randint(model.config.vocab_size, (1, tokens), generator=generator)

    after_1k = read(draw(1024), None)[0].nbytes
    for position in tqdm(range(0, TOKENS, CHUNK), mininterval=5):
        tokens = draw(CHUNK)
        cache, seconds = read(tokens, cache)
        _, fresh = read(tokens, None)
        rows.append((position, seconds / CHUNK * 1e6, seconds / fresh, peak_memory()))
    figures = pd.DataFrame(rows, columns=COLUMNS)
    tenth = figures.groupby(pd.qcut(figures.index, ROWS, labels=False))
    summary = tenth.median()
    summary["tokens"] = tenth["tokens"].min().map("from {:,}".format)
    summary[COLUMNS[-1]] = tenth[COLUMNS[-1]].max()
    ratio, memory = summary["÷ fresh call"], summary[COLUMNS[-1]]
    notes = (
        f"Last tenth over first: {ratio.iloc[-1] / ratio.iloc[0]:.3f}, each against fresh calls. "
        f"The process grows by {memory.iloc[-1] - memory.iloc[0]:.1f} MiB after the first tenth. "
        f"State: {after_1k:,} bytes after 1,024 tokens, {cache.nbytes:,} after {TOKENS:,}."
    )
    return summary.round({"µs per token": 1, "÷ fresh call": 3, COLUMNS[-1]: 0}), notes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=["parallel", "window"], default="parallel")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model, note = parallel_model() if arguments.method == "parallel" else window_model()
    rows, notes = stream(model, time.process_time if arguments.cpu_time else time.perf_counter)
    clock = "Processor" if arguments.cpu_time else "Wall"
    name = "streaming" if arguments.method == "parallel" else "streaming-window"
    table.write(name, rows, f"{notes}{note} {clock} time.")


if __name__ == "__main__":
    main()
