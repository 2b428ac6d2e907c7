"""Time of a decoder layer with a sliding window: alone, with a memory, with retained pairs.

The layer is that of `infini.retrofit(model, "window")` on a Llama of SmolLM2-135M's sizes with one
layer, the base frozen as in training, with gradients of its input. `attention`: the same with a
feed-forward of width 1. Rounds are interleaved, so that ratios are of one run.

    python -m benchmarks.window [--threads 1] [--cpu-time] [--rounds 10]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

import infini
from benchmarks import table
from benchmarks.memory import keep_heap
from infini.choices import WindowUpdate
from infini.memory.associative import AssociativeMemory

HIDDEN, HEADS, GROUPS, WIDTH, INNER, CONTEXT = 576, 9, 3, 64, 1536, 8192
WINDOW, SINKS = 256, 4
SHORT, LONG = 4096, 65536
# Write rule of the memory, and number of retained pairs
VARIANTS: dict[str, tuple[WindowUpdate, int]] = {
    "window": ("none", 0),
    "window + memory: linear": ("linear", 0),
    "window + memory: delta": ("delta", 0),
    "window + memory: gated_delta": ("gated_delta", 0),
    "window + 64 retained pairs": ("none", 64),
}

Clock = Callable[[], float]  # seconds


def one_layer(update: WindowUpdate, retained: int = 0, inner: int = INNER) -> LlamaForCausalLM:
    """Return a model of one layer of SmolLM2's sizes with a small vocabulary and a window."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=CONTEXT,
    )
    options = {"window": WINDOW, "sinks": SINKS, "update": update, "retained": retained}
    return infini.retrofit(LlamaForCausalLM(config), "window", **options)


def layer_step(decoder: nn.Module, x: Tensor) -> None:
    """Run forward and backward, from and to the layer's input."""
    decoder.zero_grad(set_to_none=True)
    out = decoder(inputs_embeds=x.detach().requires_grad_(), use_cache=False)
    out.last_hidden_state.square().mean().backward()


def memory_step(memory: AssociativeMemory, qkv: list[Tensor], size: int) -> None:
    """Run the layer's memory alone, forward and backward, `size` tokens per call."""
    memory.zero_grad(set_to_none=True)
    leaves = [x.detach().requires_grad_() for x in qkv]
    matrix, reads = torch.zeros(1, GROUPS, WIDTH, WIDTH), []
    for q, k, v in zip(*(x.split(size, 2) for x in leaves), strict=True):
        read, matrix = memory(q, k, v, matrix)
        reads.append(read)
    torch.cat(reads, 2).square().mean().backward()


def rounds(
    steps: dict[str, Callable[[], None]], count: int, clock: Clock
) -> dict[str, list[float]]:
    """Return the seconds of every step in every round; a round runs each step once."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in tqdm(range(count + 1), mininterval=5):
        for name, step in steps.items():
            start = clock()
            step()
            if round_:  # the first warms up
                times[name].append(clock() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, other: str) -> float:
    """Return the median ratio of two steps' times, round by round."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))


def compare(count: int, clock: Clock) -> pd.DataFrame:
    """Return one row per variant, at SHORT tokens."""
    x, columns = torch.randn(1, SHORT, HIDDEN), {}
    for part, inner in (("layer", INNER), ("attention", 1)):
        steps = {
            name: partial(layer_step, one_layer(*variant, inner).get_decoder(), x)
            for name, variant in VARIANTS.items()
        }
        times = rounds(steps, count, clock)
        columns[f"{part}, ms"] = [round(statistics.median(times[name]) * 1e3) for name in steps]
        columns[f"÷ window's {part}"] = [f"{ratio(times, n, 'window'):.2f}" for n in steps]
    return pd.DataFrame({"variant": list(steps), **columns})


def growth(count: int, clock: Clock) -> float:
    """Return the time of a text of LONG tokens divided by that of as many in texts of SHORT."""
    decoder, x = one_layer("gated_delta").get_decoder(), torch.randn(1, LONG, HIDDEN)

    def in_pieces() -> None:
        for piece in x.split(SHORT, 1):
            layer_step(decoder, piece)

    times = rounds({"whole": partial(layer_step, decoder, x), "pieces": in_pieces}, count, clock)
    return ratio(times, "whole", "pieces")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_heap()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.manual_seed(0)
    rows = compare(arguments.rounds, clock)
    memory = AssociativeMemory(HEADS, GROUPS, (WIDTH, WIDTH), "gated_delta")
    qkv = [torch.randn(1, SHORT, n, WIDTH).transpose(1, 2) for n in (HEADS, GROUPS, GROUPS)]
    steps = {"loop": 1, "chunks": SHORT}
    variants = {name: partial(memory_step, memory, qkv, size) for name, size in steps.items()}
    slow = rounds(variants, 3, clock)
    notes = (
        f"{SHORT:,} tokens, forward and backward, hidden size {HIDDEN}, {HEADS} heads on {GROUPS} "
        f"of width {WIDTH}, window {WINDOW} and {SINKS} sinks, batch 1, float32; "
        f"{'processor' if arguments.cpu_time else 'wall'} time, {arguments.threads} threads. "
        "The memory alone (gated delta), one call per token: "
        f"{ratio(slow, 'loop', 'chunks'):.0f} × the time of one call. "
        f"A text of {LONG:,} tokens: {growth(2, clock):.2f} × the time of as many tokens in "
        f"texts of {SHORT:,} (layer, gated delta)."
    )
    table.write("window", rows, notes)


if __name__ == "__main__":
    main()
