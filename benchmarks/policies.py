"""Speed of every retention policy, beside the plain window and the base with its own cache.

    python -m benchmarks.policies --base FOLDER [--lengths 4096 16384] [--retained 128 1024]

A prompt of random tokens in one call, then tokens one by one; a window of 64 with 4 sinks. The
plain window has as many tokens as window and pairs together.
"""

import argparse
from collections.abc import Iterator
from contextlib import nullcontext

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

import infini
from benchmarks import table
from benchmarks.clock import Clock, add_options, describe, start
from benchmarks.serving import BASE, generate
from infini.memory.eviction import policy_by_name, policy_names
from infini.model.base import load_base
from infini.model.retrofit import retained_pairs, sliding_window

WINDOW, SINKS = 64, 4
FIT_TOKENS = 512  # no text: heads that share pairs may get other shares than on text


def readings(
    base: PreTrainedModel, retained: int, policies: list[str]
) -> Iterator[tuple[str, PreTrainedModel]]:
    """Yield the ways to read by name; the base is retrofitted for one at a time."""
    with nullcontext(base) as model:
        yield BASE, model
    with sliding_window(base, WINDOW + retained, SINKS) as model:
        yield f"window of {WINDOW + retained}", model
    for name in policies:
        with retained_pairs(base, name, WINDOW, SINKS, retained) as model:
            if policy_by_name(name).needs_fit:
                infini.fit_policy(model, [torch.arange(FIT_TOKENS)])
            yield name, model


@torch.no_grad()
def compare(arguments: argparse.Namespace, clock: Clock) -> pd.DataFrame:
    """Return one row per length, number of pairs and way to read."""
    base, rows = load_base(arguments.base), []
    generator = torch.Generator().manual_seed(0)
    cases = [(length, k) for length in arguments.lengths for k in arguments.retained]
    for length, retained in tqdm(cases, mininterval=5):
        prompt = torch.randint(base.config.vocab_size, (1, length), generator=generator)
        times: dict[str, tuple[float, float]] = {}
        for name, model in readings(base, retained, arguments.policies):
            first, each = times[name] = generate(clock, model, prompt, arguments.tokens)
            base_first, base_each = times[BASE]
            window_first = times.get(f"window of {WINDOW + retained}", (first, each))[0]
            needs = name in policy_names() and policy_by_name(name).attention is not None
            rows.append(
                {
                    "prompt": length,
                    "pairs": retained,
                    "policy": name,
                    "attention weights": "yes" if needs else "",
                    "prefill, tokens/s": round(length / first),
                    "time ÷ window": f"{first / window_first:.2f}",
                    "time ÷ base": f"{first / base_first:.2f}",
                    "decoding, tokens/s": f"{1 / each:.1f}",
                    "× base": f"{base_each / each:.2f}",
                }
            )
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="folder of SmolLM2-135M")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--retained", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--policies", nargs="+", default=policy_names(), choices=policy_names())
    parser.add_argument("--tokens", type=int, default=32, help="generated after the prompt")
    add_options(parser)
    arguments = parser.parse_args()
    clock = start(arguments)
    (kind, rate), rows = describe(clock), compare(arguments, clock)
    notes = (
        f"float32, window {WINDOW}, {arguments.tokens} tokens after the prompt, {kind} time of one "
        f"run. {rate}"
    )
    table.write("policies", rows, notes)


if __name__ == "__main__":
    main()
