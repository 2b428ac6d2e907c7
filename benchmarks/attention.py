"""Time and peak memory of InfiniAttention, a peer, full attention and segments without memory.

Peer: CausalAttention of `infini-transformer-pytorch`, looped over segments. Full: causal attention
over the whole length. All have the same four projections. Rounds are interleaved, so that ratios
are of one run.

    pip install -e '.[bench]' && python -m benchmarks.attention
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from infini_transformer_pytorch.infini_transformer import CausalAttention
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import table
from benchmarks.memory import keep_heap
from infini import InfiniAttention
from infini.evaluation.peak_memory import peak_added_by

HIDDEN, HEADS = 512, 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = {4096: 12, 16384: 4, 65536: 2}
LONGEST_FULL = 16384 if DEVICE == "cpu" else 65536  # its cost is quadratic


class Peer(nn.Module):
    """Attention of the peer as its authors run it: one call per segment, the memory passed on."""

    def __init__(self, segment_length: int, delta: bool):
        super().__init__()
        self.segment_length = segment_length
        self.attention = CausalAttention(
            HIDDEN, dim_head=HIDDEN // HEADS, heads=HEADS, use_mem_delta_rule=delta
        )

    def forward(self, x: Tensor) -> Tensor:
        memories, outs = None, []
        for segment in x.split(self.segment_length, 1):
            out, _, memories = self.attention(
                segment, past_memories=memories, return_new_memories=True
            )
            outs.append(out)
        return torch.cat(outs, 1)


class Softmax(nn.Module):
    """Causal attention within blocks of `block` tokens."""

    def __init__(self, block: int):
        super().__init__()
        self.block = block
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).view(-1, self.block, HEADS, HIDDEN // HEADS).transpose(1, 2)
            for proj in (self.q, self.k, self.v)
        )  # (B·N, H, block, D)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(out.transpose(1, 2).reshape(x.shape))


class Ours(nn.Module):
    """Our attention, without its state."""

    def __init__(self, segment_length: int, update: str):
        super().__init__()
        self.attention = InfiniAttention(HIDDEN, HEADS, segment_length, update)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)[0]


VARIANTS: dict[str, Callable[[int, int], nn.Module]] = {
    "no memory": lambda length, segment: Softmax(segment),
    "ours, linear": lambda length, segment: Ours(segment, "linear"),
    "ours, delta": lambda length, segment: Ours(segment, "delta"),
    "peer, linear": lambda length, segment: Peer(segment, False),
    "peer, delta": lambda length, segment: Peer(segment, True),
    "full": lambda length, segment: Softmax(length),
}


def now() -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def step(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> tuple[float, float]:
    """Return the seconds of a forward pass, and of one with its backward pass."""
    model.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    start = now()
    with torch.autocast(DEVICE, dtype or torch.bfloat16, enabled=dtype is not None):
        out = model(x)
    forward = now()
    out.float().square().mean().backward()
    return forward - start, now() - start


def _peak(name: str, length: int, segment: int, queue: "multiprocessing.Queue[float]") -> None:
    torch.manual_seed(0)
    model = VARIANTS[name](length, segment).to(DEVICE)
    x = torch.randn(1, length, HIDDEN, device=DEVICE)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, x, None)
        queue.put((torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    queue.put(peak_added_by(lambda: step(model, x, None)))


def peak_memory(name: str, length: int, segment: int) -> float:
    """Return the MiB that a forward and backward pass adds, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(name, length, segment, queue))
    process.start()
    peak = queue.get()
    process.join()
    return peak


def measure(length: int, segment: int, dtype: torch.dtype | None) -> list[dict[str, object]]:
    """Return one row per variant: medians over interleaved rounds."""
    torch.manual_seed(0)
    names = [name for name in VARIANTS if name != "full" or length <= LONGEST_FULL]
    models = {name: VARIANTS[name](length, segment).to(DEVICE) for name in names}
    x = torch.randn(1, length, HIDDEN, device=DEVICE)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for round_ in tqdm(range(ROUNDS[length] + 1), desc=f"{length} tokens", mininterval=5):
        for name, model in models.items():
            seconds = step(model, x, dtype)
            if round_:  # the first warms up
                times[name].append(seconds)

    def ratio(name: str, other: str) -> float:
        """Return the median ratio of the times with backward, round by round."""
        pairs = zip(times[name], times[other], strict=True)
        return statistics.median(one[1] / base[1] for one, base in pairs)

    return [
        {
            "tokens": length,
            "segment": segment,
            "variant": name,
            "forward, ms": round(statistics.median(f for f, _ in times[name]) * 1e3),
            "with backward, ms": round(statistics.median(b for _, b in times[name]) * 1e3),
            "÷ no memory": f"{ratio(name, 'no memory'):.2f}",
            "peer ÷ this": f"{ratio(f'peer, {name[6:]}', name):.2f}" if "ours" in name else "",
            "peak memory, MiB": round(peak_memory(name, length, segment)),
        }
        for name in names
    ]


def growth(short: int, long: int, dtype: torch.dtype | None) -> float:
    """Return the time of `long` tokens divided by that of as many in texts of `short`."""
    model = Ours(256, "linear").to(DEVICE)
    whole = torch.randn(1, long, HIDDEN, device=DEVICE)
    ratios = []
    for _ in range(4):
        pieces = sum(step(model, piece, dtype)[1] for piece in whole.split(short, 1))
        ratios.append(step(model, whole, dtype)[1] / pieces)
    return statistics.median(ratios[1:])  # the first warms up


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--short", action="store_true", help="4,096 tokens only")
    arguments = parser.parse_args()
    keep_heap()
    dtype = torch.bfloat16 if arguments.bf16 else None
    runs = [(4096, 256), (4096, 64)]
    if not arguments.short:
        runs += [(16384, 256), (65536, 256)]
    rows = [row for length, segment in runs for row in measure(length, segment, dtype)]
    notes = f"Hidden size {HIDDEN}, {HEADS} heads, batch 1, {'bfloat16' if dtype else 'float32'}."
    if not arguments.short:
        notes += (
            f" 65,536 tokens cost {growth(4096, 65536, dtype):.2f} × 16 × 4,096 (ours, linear)."
        )
    table.write("attention", pd.DataFrame(rows), notes)


if __name__ == "__main__":
    main()
