"""What a memory costs against the base's full cache of keys and values, by length.

Costs depend on shapes alone: versions are measured untrained, on random tokens. Lengths beyond
the base's context cost what they would cost if it had been trained that far.
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
from infini.evaluation.peak_memory import added_by
from infini.model.architectures import CACHE, cache_of
from infini.model.base import load_base
from infini.model.config import Base
from infini.model.retrofit import untrained
from infini.model.segmented.cache import SegmentedCache
from infini.model.segmented.layers import added_parameters
from infini.model.window.cache import WindowCache

CHUNK = 1024  # tokens a call


@torch.no_grad()
def read(model: PreTrainedModel, tokens: Tensor) -> Cache:
    """The cache after (1, T) tokens, read as text comes in: logits of the last one only."""
    cache: Cache | None = None
    for chunk in tokens.split(CHUNK, dim=1):
        cache = cache_of(model(chunk, **{CACHE: cache}, use_cache=True, logits_to_keep=1))
    assert cache is not None
    return cache


class StateBytes(NamedTuple):
    """Bytes that are kept from one token to the next."""

    exact: int  # keys and values of tokens, as the base's layers hold them
    pending: int = 0  # further copies of tokens that the memory will be written from
    memory: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def carried(cache: Cache) -> StateBytes:
    """What must be kept to read on."""
    if isinstance(cache, SegmentedCache):
        states = cache.memory.values()
        return StateBytes(
            _exact(cache.base),
            pending=sum(state.keys.nbytes + state.values.nbytes for state in states),
            memory=sum(state.matrix.nbytes + state.normalizer.nbytes for state in states),
        )
    if isinstance(cache, WindowCache):
        windows = cache.states.values()
        window = sum(state.window_bytes for state in windows)
        memory = sum(state.nbytes - state.window_bytes for state in windows)
        return StateBytes(_exact(cache.text) + window, memory=memory)
    assert isinstance(cache, DynamicCache)
    return StateBytes(_exact(cache))


def itemised(kept: StateBytes) -> dict[str, int]:
    """As metrics."""
    return {**kept._asdict(), "total": kept.total}


def _exact(cache: DynamicCache) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


class Setting(NamedTuple):
    """What is measured, in a process of its own."""

    base: Base
    retrofit: dict[str, Any] | None  # the version's options; None: the untouched base
    length: int  # tokens read
    repeats: int
    seed: int


def table(
    base: Base,
    versions: dict[str, dict[str, Any]],
    cost: Cost,
    seed: int,
) -> pd.DataFrame:
    """Columns version, length, state_bytes, parameters, tokens_per_second, peak_mib.

    versions: their options of `retrofit`. A process each, so that no measurement finds memory
    that another has left.
    """
    cases = [
        (name, Setting(base, options, length, cost.repeats, seed))
        for name, options in {"base": None, **versions}.items()
        for length in cost.lengths
    ]
    rows = []
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for name, setting in progress(cases, "costs"):
            measured = pool.submit(_measure, setting).result()
            rows.append({"version": name, "length": setting.length} | measured)
    return pd.DataFrame(rows)


def _measure(setting: Setting) -> dict[str, float]:
    model = load_base(setting.base.model, setting.base.revision).to(processes.device())
    if setting.retrofit is not None:
        untrained(model, setting.seed, setting.retrofit)
    torch.manual_seed(setting.seed)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (1, setting.length)).to(model.device)
    read(model, tokens[:, :CHUNK])  # what is set up once
    seconds = []
    for _ in range(setting.repeats):
        began = time.perf_counter()
        cache = read(model, tokens)
        seconds.append(time.perf_counter() - began)
    kept = carried(cache).total
    del cache
    return {
        "state_bytes": kept,
        "parameters": added_parameters(model),
        "tokens_per_second": round(setting.length / min(seconds), 1),
        "peak_mib": round(added_by(lambda: read(model, tokens)), 1),
    }
