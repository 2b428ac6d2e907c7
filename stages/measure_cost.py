"""Measure what every version's memory costs against the base's full cache; on demand."""

from infini import costs, params
from infini.cli import run
from infini.record import COSTS, Stopwatch


def main() -> None:
    watch = Stopwatch("measure_cost")
    seed, base, length, replacements, adapters, cost = params.read(
        "seed", "base", "data.segment_length", "replacements", "adapters", "cost"
    )
    table = costs.table(base, {**replacements, **adapters}, length, cost, seed)
    COSTS.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(COSTS, index=False)
    watch.write()


if __name__ == "__main__":
    run(main)
