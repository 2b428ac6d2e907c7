"""Speed and memory of generation with a retrofitted model, beside the base with its own cache.

    python -m benchmarks.serving --base FOLDER [--weights FOLDER] [--lengths 1024 6000] [--batch 1]

A prompt of random tokens in one call, then tokens one by one; prompts of up to 32,768 tokens in
all. Without --weights the model of v7's sizes is untrained, which costs the same.
"""

import argparse
from functools import partial

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

import infini
from benchmarks import table
from benchmarks.clock import Clock, add_options, describe, start
from infini.evaluation.peak_memory import peak_added_by
from infini.model.architectures import CACHE, cache_of
from infini.model.base import load_base

OURS = "v7: window 64, 128 retained pairs, matrix"
UNTRAINED = "window 256, 128 retained pairs"
BASE = "base, its own cache"
MAX_TOKENS = 32_768  # of all prompts of a call


def models(base: str, weights: str | None) -> dict[str, PreTrainedModel]:
    """Return the models to compare by name."""
    options = {"sinks": 4, "retained": 128}
    if weights is None:
        ours = infini.retrofit(
            load_base(base), "window", window=64, update="gated_delta", **options
        )
    else:
        ours = infini.load(weights, base=base)
    other = infini.retrofit(load_base(base), "window", window=256, update="none", **options)
    return {BASE: load_base(base), OURS: ours.eval(), UNTRAINED: other.eval()}


def generate(
    clock: Clock, model: PreTrainedModel, prompt: Tensor, tokens: int
) -> tuple[float, float]:
    """Return the seconds of the prompt and of each further token."""

    def read(new: Tensor, cache: object) -> tuple[Tensor, object]:
        out = model(new, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1:].argmax(-1), cache_of(out)

    begin = clock()
    new, cache = read(prompt, None)
    first = clock()
    for _ in range(tokens):
        new, cache = read(new, cache)
    return first - begin, (clock() - first) / tokens


@torch.no_grad()
def compare(arguments: argparse.Namespace, clock: Clock) -> pd.DataFrame:
    """Return one row per batch, prompt and model."""
    rows = []
    variants = models(arguments.base, arguments.weights)
    generator = torch.Generator().manual_seed(0)
    cases = [
        (batch, length)
        for batch in arguments.batch
        for length in arguments.lengths
        if batch * length <= MAX_TOKENS
    ]
    for batch, length in tqdm(cases, mininterval=5):
        vocabulary = variants[BASE].config.vocab_size
        prompt = torch.randint(vocabulary, (batch, length), generator=generator)
        base_first = base_each = 0.0
        for name, model in variants.items():
            times: list[tuple[float, float]] = []
            work = partial(generate, clock, model, prompt, arguments.tokens)
            peak = peak_added_by(lambda: times.append(work()))  # noqa: B023
            first, each = times[0]
            if name == BASE:
                base_first, base_each = first, each
            rows.append(
                {
                    "batch": batch,
                    "prompt": length,
                    "model": name,
                    "first token, s": f"{first:.2f}",
                    "÷ base": f"{first / base_first:.2f}",
                    "prefill, tokens/s": round(batch * length / first),
                    "decoding, tokens/s": f"{batch / each:.1f}",
                    "× base": f"{base_each / each:.2f}",
                    "peak memory, MiB": round(peak),
                }
            )
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="folder of SmolLM2-135M")
    parser.add_argument("--weights", help="folder of v7's weights; without it: untrained")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 6000, 16384, 32768])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=50, help="generated after the prompt")
    add_options(parser)
    arguments = parser.parse_args()
    clock = start(arguments)
    (kind, rate), rows = describe(clock), compare(arguments, clock)
    notes = (
        f"float32, {arguments.tokens} tokens after the prompt, one run, {kind} time; peak memory "
        f"beyond the weights. {rate}"
    )
    table.write("serving", rows, notes)


if __name__ == "__main__":
    main()
