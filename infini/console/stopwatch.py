"""Duration of a stage: a log line, and a file that no stage depends on."""

import logging
import time

import psutil

from infini.files import write_json
from infini.paths import TIMES

log = logging.getLogger(__name__)


class Stopwatch:
    """Measures the wall time of a stage from its construction on."""

    def __init__(self, name: str):
        self.name = name
        self.start = time.perf_counter()
        self.startup = time.time() - psutil.Process().create_time()  # mostly imports

    def write(self, **more: float) -> None:
        """Write seconds since the start, and of the start-up, to data/times/<name>.json."""
        seconds = round(time.perf_counter() - self.start, 1)
        log.info("%s: %.1f s", self.name, seconds)
        content = {"seconds": seconds, "startup": round(self.startup, 1), **more}
        write_json(TIMES / f"{self.name}.json", content)
