"""Measure what every version's memory costs against the base's full cache; on demand."""

from infini import params
from infini.console.stage import run
from infini.console.stopwatch import Stopwatch
from infini.evaluation import cost
from infini.evaluation.config import Cost
from infini.model.config import Base
from infini.paths import COSTS


def main() -> None:
    watch = Stopwatch("measure_cost")
    length = params.read("data.segment_length", int)
    table = cost.table(
        params.read("base", Base),
        {name: version.retrofit_options(length) for name, version in params.versions().items()},
        params.read("cost", Cost),
        params.read("seed", int),
    )
    COSTS.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(COSTS, index=False)
    watch.write()


if __name__ == "__main__":
    run(main)
