"""What a memory costs against the base's full cache of keys and values, by length.

Costs depend on shapes alone: versions are measured untrained, on random tokens. Lengths beyond
the base's context cost what they would cost if it had been trained that far.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import pandas as pd
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from infini.base import load_model
from infini.cache import InfiniCache
from infini.layers import InfiniLayer, infini_slots, our_tensors
from infini.params import Adapter, Base, Cost, Replacement
from infini.progress import progress
from infini.rss import added_by
from infini.surgery import add_adapter, replace_layer

CHUNK = 1024  # tokens a call


def parameters(model: PreTrainedModel) -> int:
    """How many the memory adds to the base; a replaced layer's own are taken off."""
    replaced = [s.original for s in infini_slots(model).values() if isinstance(s, InfiniLayer)]
    ours = sum(tensor.numel() for tensor in our_tensors(model).values())
    return ours - sum(p.numel() for layer in replaced for p in layer.parameters())


@torch.no_grad()
def read(model: PreTrainedModel, tokens: Tensor) -> Cache:
    """The cache after (1, T) tokens, read as text comes in: logits of the last one only."""
    cache: Cache | None = None
    for chunk in tokens.split(CHUNK, dim=1):
        cache = model(
            chunk, past_key_values=cache, use_cache=True, logits_to_keep=1
        ).past_key_values
    assert cache is not None
    return cache


def state_bytes(cache: Cache) -> int:
    """What must be kept to read on: keys and values, the memory, the segment begun."""
    if isinstance(cache, InfiniCache):
        return cache.nbytes
    assert isinstance(cache, DynamicCache)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def table(
    base: Base,
    versions: dict[str, Replacement | Adapter],
    segment_length: int,
    cost: Cost,
    seed: int,
) -> pd.DataFrame:
    """Columns version, length, state_bytes, parameters, tokens_per_second, peak_mib.

    A process each, so that no measurement finds memory that another has left.
    """
    cases = [
        (name, recipe, length)
        for name, recipe in {"base": None, **versions}.items()
        for length in cost.lengths
    ]
    rows = []
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        for name, recipe, length in progress(cases, "costs"):
            work = pool.submit(_measure, base, recipe, segment_length, length, cost.repeats, seed)
            rows.append({"version": name, "length": length} | work.result())
    return pd.DataFrame(rows)


def _measure(
    base: Base,
    recipe: Replacement | Adapter | None,
    segment_length: int,
    length: int,
    repeats: int,
    seed: int,
) -> dict[str, float]:
    model = load_model(base)
    if isinstance(recipe, Adapter):
        add_adapter(model, recipe, segment_length, seed)
    elif recipe is not None:
        replace_layer(model, recipe.layer, segment_length, seed)
    torch.manual_seed(seed)
    tokens = torch.randint(model.config.get_text_config().vocab_size, (1, length))
    read(model, tokens[:, :CHUNK])  # what is set up once
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        cache = read(model, tokens)
        seconds.append(time.perf_counter() - began)
    carried = state_bytes(cache)
    del cache
    return {
        "state_bytes": carried,
        "parameters": parameters(model),
        "tokens_per_second": round(length / min(seconds), 1),
        "peak_mib": round(added_by(lambda: read(model, tokens)), 1),
    }
