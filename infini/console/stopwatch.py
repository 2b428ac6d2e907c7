"""How long a stage takes: a line for the user, and a file that nothing depends on."""

import logging
import time

import psutil

from infini.files import write_json
from infini.paths import TIMES

log = logging.getLogger(__name__)


class Stopwatch:
    """Wall time of a stage, from when it is made."""

    def __init__(self, name: str):
        self.name = name
        self.start = time.perf_counter()
        self.startup = time.time() - psutil.Process().create_time()  # imports, mostly

    def write(self, **more: float) -> None:
        """Seconds since the start, and of the imports before it, to data/times/<name>.json."""
        seconds = round(time.perf_counter() - self.start, 1)
        log.info("%s: %.1f s", self.name, seconds)
        content = {"seconds": seconds, "startup": round(self.startup, 1), **more}
        write_json(TIMES / f"{self.name}.json", content)
