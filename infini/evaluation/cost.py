"""Costs of a memory and of the base's full key-value cache, by length of text.

Costs depend on shapes alone, so versions are measured untrained, on random tokens. Lengths beyond
the base's context cost what they would if it had been trained that far.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from infini import processes
from infini.console.progress import progress
from infini.evaluation.config import Cost
from infini.evaluation.peak_memory import peak_added_by
from infini.model.architectures import CACHE, cache_of
from infini.model.base import load_base
from infini.model.config import Base
from infini.model.modules import added_parameters
from infini.model.retrofit import retrofit_with_seed
from infini.model.segmented.cache import SegmentedCache
from infini.model.window.cache import WindowCache

TOKENS_PER_CALL = 1024


@torch.no_grad()
def cache_after(model: PreTrainedModel, tokens: Tensor) -> Cache:
    """Return the cache after (1, T) tokens, fed in calls of `TOKENS_PER_CALL`."""
    cache: Cache | None = None
    for chunk in tokens.split(TOKENS_PER_CALL, dim=1):
        cache = cache_of(model(chunk, **{CACHE: cache}, use_cache=True, logits_to_keep=1))
    assert cache is not None
    return cache


class StateBytes(NamedTuple):
    """Cache size in bytes: all that goes from one token to the next."""

    exact: int  # keys and values of tokens, as the base's layers hold them
    pending: int = 0  # copies of tokens that will be written to the memory
    memory: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(self)

    def as_metrics(self) -> dict[str, int]:
        """Return the parts and the total by name."""
        return {**self._asdict(), "total": self.total}


def state_bytes(cache: Cache) -> StateBytes:
    """Count the bytes of a cache."""
    if isinstance(cache, SegmentedCache):
        states = cache.memory.values()
        return StateBytes(
            _exact(cache.base_cache),
            pending=sum(state.keys.nbytes + state.values.nbytes for state in states),
            memory=sum(state.matrix.nbytes + state.normalizer.nbytes for state in states),
        )
    if isinstance(cache, WindowCache):
        windows = cache.states.values()
        window = sum(state.window_bytes for state in windows)
        memory = sum(state.nbytes - state.window_bytes for state in windows)
        return StateBytes(_exact(cache.base_cache) + window, memory=memory)
    assert isinstance(cache, DynamicCache)
    return StateBytes(_exact(cache))


def _exact(cache: DynamicCache) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


class CostCase(NamedTuple):
    """Arguments of one measurement."""

    base: Base
    retrofit: dict[str, Any] | None  # the version's options; None: the untouched base
    length: int  # tokens read
    repeats: int
    seed: int


def measure_costs(
    base: Base,
    versions: dict[str, dict[str, Any]],
    cost: Cost,
    seed: int,
) -> pd.DataFrame:
    """Measure the base and all versions, each case in a process of its own.

    Args:
        base: The base.
        versions: Options of `infini.retrofit` by version.
        cost: Lengths and repeats.
        seed: Seed of weights and tokens.

    Returns:
        Columns version, length, state_bytes, parameters (added), tokens_per_second, peak_mib
        (beyond what the process held before).
    """
    cases = [
        (name, CostCase(base, options, length, cost.repeats, seed))
        for name, options in {"base": None, **versions}.items()
        for length in cost.lengths
    ]
    rows = []
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for name, case in progress(cases, "costs"):
            measured = pool.submit(_measure, case).result()
            rows.append({"version": name, "length": case.length} | measured)
    return pd.DataFrame(rows)


def _measure(case: CostCase) -> dict[str, float]:
    model = load_base(case.base.model, case.base.revision).to(processes.device())
    if case.retrofit is not None:
        retrofit_with_seed(model, case.seed, case.retrofit)
    torch.manual_seed(case.seed)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (1, case.length)).to(model.device)
    cache_after(model, tokens[:, :TOKENS_PER_CALL])  # warm-up
    seconds = []
    for _ in range(case.repeats):
        start = time.perf_counter()
        cache = cache_after(model, tokens)
        seconds.append(time.perf_counter() - start)
    total = state_bytes(cache).total
    del cache
    return {
        "state_bytes": total,
        "parameters": added_parameters(model),
        "tokens_per_second": round(case.length / min(seconds), 1),
        "peak_mib": round(peak_added_by(lambda: cache_after(model, tokens)), 1),
    }
