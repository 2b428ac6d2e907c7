"""A layer of attention in a sliding window, with and without a memory of what left the window.

The layer has SmolLM2-135M's sizes. Its attention is a stand-in: blocks of a window's length that
see themselves and the block before. With the memory come the normalised queries and keys, the
projections of strength and decay, and the sum of both outputs. Rounds are interleaved, so that
ratios are of one run.

    python -m benchmarks.window [--threads 1] [--cpu-time]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import table
from benchmarks.memory import keep_heap
from infini.choices import Update
from infini.memory import recurrent_memory

HIDDEN, HEADS, GROUPS, WIDTH, WINDOW = 576, 9, 3, 64, 256
SHORT, LONG = 4096, 65536

Clock = Callable[[], float]  # seconds


class Layer(nn.Module):
    """update: of the memory; None: no memory."""

    def __init__(self, update: Update | None = None, decays: bool = True):
        super().__init__()
        self.update: Update | None = update
        self.q, self.o = (nn.Linear(HIDDEN, HEADS * WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(HIDDEN, GROUPS * WIDTH, bias=False) for _ in range(2))
        self.beta = nn.Linear(HIDDEN, GROUPS) if update else None
        self.decay = nn.Linear(HIDDEN, GROUPS) if update and decays else None
        behind = torch.arange(WINDOW)[:, None] + WINDOW - torch.arange(2 * WINDOW)
        outside = (behind < 0) | (behind >= WINDOW)
        self.bias = torch.zeros(WINDOW, 2 * WINDOW).masked_fill(outside, -torch.inf)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (-1, WIDTH)).transpose(1, 2) for proj in (self.q, self.k, self.v)
        )  # (B, T, H·D) → (B, H, T, D)
        out = self.local(q, k, v)
        if self.update is not None and self.beta is not None:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            beta = torch.sigmoid(self.beta(x)).transpose(1, 2)  # (B, G, T)
            decay = None if self.decay is None else F.logsigmoid(self.decay(x)).transpose(1, 2)
            out = out + recurrent_memory(q, k, v, beta, decay, delay=WINDOW, update=self.update)[0]
        return self.o(out.transpose(1, 2).flatten(2))

    def local(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, T, D); the first block sees zeros before the text."""
        batch = len(q)
        # (B, G, T, D) → (B·N, G, 2·WINDOW, D): N blocks, each behind the one before it
        k, v = (
            F.pad(y, (0, 0, WINDOW, 0)).unfold(2, 2 * WINDOW, WINDOW).permute(0, 2, 1, 4, 3)
            for y in (k, v)
        )
        q = q.unflatten(2, (-1, WINDOW)).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=self.bias, enable_gqa=True
        )
        return out.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)


class Memory:
    """The memory alone: a step is its forward and backward pass on given inputs."""

    def __init__(self, tokens: int, update: Update = "delta", decays: bool = True):
        def leaf(x: Tensor) -> Tensor:  # laid out as a projection's output
            return x.transpose(1, 2).requires_grad_()

        shape = 1, tokens, GROUPS
        self.update: Update = update
        self.inputs = [
            leaf(F.normalize(torch.randn(1, tokens, HEADS, WIDTH), dim=-1)),
            leaf(F.normalize(torch.randn(*shape, WIDTH), dim=-1)),
            leaf(torch.randn(*shape, WIDTH)),
            leaf(torch.rand(shape)),
            leaf(F.logsigmoid(torch.randn(shape) + 3)),
        ][: 5 if decays else 4]
        self.d_out = torch.randn(1, tokens, HEADS, WIDTH).transpose(1, 2)

    def step(self, tokens: slice = slice(None), loop: bool = False) -> None:
        """Some of the tokens; loop: token by token."""
        leaves = [x.detach()[:, :, tokens].requires_grad_() for x in self.inputs]
        if loop:
            out = token_loop(*leaves)
        else:
            out, _ = recurrent_memory(*leaves, delay=WINDOW, update=self.update)
        out.backward(self.d_out[:, :, tokens])


def token_loop(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    """The gated delta rule token by token, all heads at once; as `recurrent_memory`."""
    memory = q.new_zeros(len(q), GROUPS, WIDTH, WIDTH)
    memories = [memory] * WINDOW
    queries = q.unflatten(1, (GROUPS, -1)).unbind(3)  # T of (B, G, H/G, D)
    tokens = zip(*(x.unsqueeze(3).unbind(2) for x in (k, v, beta, decay)), strict=True)
    reads = []
    # key, value: (B, G, 1, D); strength, left: (B, G, 1)
    for query, (key, value, strength, left) in zip(queries, tokens, strict=True):
        reads.append((query @ memories[len(reads)]).flatten(1, 2))  # (B, H, D)
        memory = memory * left[..., None].exp()
        memory = memory + (strength[..., None] * key).mT @ (value - key @ memory)
        memories.append(memory)
    return torch.stack(reads, 2)


def layer_step(layer: Layer, x: Tensor) -> None:
    layer.zero_grad(set_to_none=True)
    layer(x.detach().requires_grad_()).square().mean().backward()


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
    x = torch.randn(1, SHORT, HIDDEN)
    steps: dict[str, Callable[[], None]] = {"window": partial(layer_step, Layer(), x)}
    rules: list[tuple[str, Update, bool]] = [
        ("delta, decays", "delta", True), ("delta", "delta", False), ("linear", "linear", False)
    ]  # fmt: skip
    for name, update, decays in rules:
        steps[f"window + memory: {name}"] = partial(layer_step, Layer(update, decays), x)
        steps[f"memory alone: {name}"] = Memory(SHORT, update, decays).step
    times = rounds(steps, count, clock)
    return pd.DataFrame(
        {
            "variant": name,
            "forward and backward, ms": round(statistics.median(times[name]) * 1e3),
            "of the window layer": f"{ratio(times, name, 'window'):.2f}",
        }
        for name in steps
    )


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
    memory, long = Memory(SHORT), Memory(LONG)

    def in_pieces() -> None:
        for start in range(0, LONG, SHORT):
            long.step(slice(start, start + SHORT))

    slow = rounds({"loop": partial(memory.step, loop=True), "chunks": memory.step}, 3, clock)
    growth = rounds({"whole": long.step, "pieces": in_pieces}, 3, clock)
    notes = (
        f"{SHORT:,} tokens, hidden size {HIDDEN}, {HEADS} heads on {GROUPS} of width {WIDTH}, "
        f"window and delay {WINDOW}, batch 1, float32; "
        f"{'processor' if arguments.cpu_time else 'wall'} time, {arguments.threads} threads. "
        f"A loop over tokens (delta, decays): {ratio(slow, 'loop', 'chunks'):.0f} × the memory. "
        f"{LONG:,} tokens: {ratio(growth, 'whole', 'pieces'):.2f} × as many in pieces of {SHORT:,}."
    )
    table.write("window", rows, notes)


if __name__ == "__main__":
    main()
