"""The clock of a benchmark, by options of its command line."""

import argparse
import time
from collections.abc import Callable

import torch

MATMUL = 2048  # rows and columns of the product that gives the machine's rate

Clock = Callable[[], float]  # seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options --threads and --cpu-time."""
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="processor time, for 1 thread")


def start(arguments: argparse.Namespace) -> Clock:
    """Set the number of threads, and return the clock that the options ask for."""
    torch.set_num_threads(arguments.threads)
    return time.process_time if arguments.cpu_time else time.perf_counter


def describe(clock: Clock) -> tuple[str, str]:
    """Return the kind of time that a clock shows, and a sentence about the machine's rate."""
    kind = "processor" if clock is time.process_time else "wall"
    rate = f"A product of {MATMUL} × {MATMUL} runs at {_matmul_rate(clock):.0f} GFLOP/s here."
    return kind, rate


def _matmul_rate(clock: Clock) -> float:
    """Return the rate of a large product, the best of ten, in GFLOP/s."""
    x, rates = torch.randn(MATMUL, MATMUL), []
    for _ in range(10):
        start = clock()
        x @ x
        rates.append(2 * MATMUL**3 / (clock() - start) / 1e9)
    return max(rates)
