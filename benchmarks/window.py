"""A decoder layer with a window: alone, with a memory of what left it, with pairs kept of that.

The layer is that of `infini.retrofit(model, "window")` on a Llama of SmolLM2-135M's sizes and one
layer, its base frozen as in training, gradients down to its input. `attention`: the same with a
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
# The memory's rule, if any, and how many pairs are kept
VARIANTS: dict[str, tuple[WindowUpdate, int]] = {
    "window": ("none", 0),
    "window + memory: linear": ("linear", 0),
    "window + memory: delta": ("delta", 0),
    "window + memory: gated_delta": ("gated_delta", 0),
    "window + 64 kept pairs": ("none", 64),
}

Clock = Callable[[], float]  # seconds


def one_layer(update: WindowUpdate, kept: int = 0, inner: int = INNER) -> LlamaForCausalLM:
    """SmolLM2's layer behind a small vocabulary, in a window."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=CONTEXT,
    )
    options = {"window": WINDOW, "sinks": SINKS, "update": update, "retained": kept}
    return infini.retrofit(LlamaForCausalLM(config), "window", **options)


def layer_step(decoder: nn.Module, x: Tensor) -> None:
    """Forward and backward, from and to the layer's input."""
    decoder.zero_grad(set_to_none=True)
    out = decoder(inputs_embeds=x.detach().requires_grad_(), use_cache=False)
    out.last_hidden_state.square().mean().backward()


def memory_step(memory: AssociativeMemory, qkv: list[Tensor], size: int) -> None:
    """The layer's memory alone, what it reads and writes, forward and backward; `size` tokens a
    call: 1 is a loop over tokens, of plain PyTorch."""
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
    """Seconds of every step in every round, the steps of a round one after the other."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in tqdm(range(count + 1), mininterval=5):
        for name, step in steps.items():
            start = clock()
            step()
            if round_:  # the first warms up
                times[name].append(clock() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, other: str) -> float:
    """Median of the rounds'."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))


def compare(count: int, clock: Clock) -> pd.DataFrame:
    """One row a variant at SHORT tokens."""
    x, columns = torch.randn(1, SHORT, HIDDEN), {}
    for part, inner in (("layer", INNER), ("attention", 1)):
        steps = {
            name: partial(layer_step, one_layer(*variant, inner).get_decoder(), x)
            for name, variant in VARIANTS.items()
        }
        times = rounds(steps, count, clock)
        columns[f"{part}, ms"] = [round(statistics.median(times[name]) * 1e3) for name in steps]
        columns[f"of the window's {part}"] = [f"{ratio(times, n, 'window'):.2f}" for n in steps]
    return pd.DataFrame({"variant": list(steps), **columns})


def growth(count: int, clock: Clock) -> float:
    """A token's cost in LONG tokens at once, as a multiple of that in texts of SHORT."""
    decoder, x = one_layer("gated_delta").get_decoder(), torch.randn(1, LONG, HIDDEN)

    def in_pieces() -> None:
        for piece in x.split(SHORT, 1):
            layer_step(decoder, piece)

    times = rounds({"whole": partial(layer_step, decoder, x), "pieces": in_pieces}, count, clock)
    return ratio(times, "whole", "pieces")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="of the process, not of the wall")
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
    ways = {name: partial(memory_step, memory, qkv, size) for name, size in steps.items()}
    slow = rounds(ways, 3, clock)
    notes = (
        f"{SHORT:,} tokens, forward and backward, hidden size {HIDDEN}, {HEADS} heads on {GROUPS} "
        f"of width {WIDTH}, window {WINDOW} and {SINKS} sinks, batch 1, float32; "
        f"{'processor' if arguments.cpu_time else 'wall'} time, {arguments.threads} threads. "
        f"The memory alone (gated delta), a token a call: {ratio(slow, 'loop', 'chunks'):.0f} × as "
        "long as in one. "
        f"{LONG:,} tokens at once: {growth(2, clock):.2f} × as many in texts of {SHORT:,} "
        "(layer, gated delta)."
    )
    table.write("window", rows, notes)


if __name__ == "__main__":
    main()
