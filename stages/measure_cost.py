"""Measure the costs of every version's memory and of the base's full cache, on demand."""

from infini import params
from infini.console.stage import run_stage
from infini.console.stopwatch import Stopwatch
from infini.evaluation.config import Cost
from infini.evaluation.cost import measure_costs
from infini.evaluation.rounding import write_rounded_csv
from infini.model.config import Base
from infini.paths import COSTS


def main() -> None:
    watch = Stopwatch("measure_cost")
    length = params.get("data.segment_length", int)
    table = measure_costs(
        params.get("base", Base),
        {name: version.retrofit_options(length) for name, version in params.all_versions().items()},
        params.get("cost", Cost),
        params.get("seed", int),
    )
    write_rounded_csv(COSTS, table, ["version", "length"])
    watch.write()


if __name__ == "__main__":
    run_stage(main)
