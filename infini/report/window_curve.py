"""The opponent: what the untouched base reaches with its last tokens alone, by bytes carried.

A point a window, from the smallest to full attention. Below the curve is where a memory pays.
"""

import math
import re
from typing import NamedTuple

import numpy as np

from infini.evaluation.estimates import Estimate
from infini.report.results import Figures

KEY = re.compile(r"window\.w(\d+)\.nats")
FULL = "full"


class Point(NamedTuple):
    """A model by what it carries and how well it reads."""

    name: str
    key: str  # of its figures
    carried: float  # bytes from one token to the next
    nats: Estimate  # a token

    @property
    def protocol(self) -> str:
        """Its name in loss tables."""
        return self.key.replace(".w", "")


class WindowCurve:
    """The untouched base's windows and full attention over `context` tokens, by bytes carried."""

    def __init__(self, base: Figures, context: int):
        keys = {m[1]: f"window.w{m[1]}" for key in base if (m := KEY.fullmatch(key))}
        keys[FULL] = FULL
        points = [
            Point(name, key, base[f"{key}.bytes"].value, base[f"{key}.nats"])
            for name, key in keys.items()
        ]
        self.points = sorted(points, key=lambda point: point.carried)
        self._log_bytes = np.log([point.carried for point in self.points])
        self._nats = np.array([point.nats.value for point in self.points])
        self._token = base["full.bytes"].value / context

    def nats_at(self, carried: float) -> float:
        """Nats a token for so many bytes: linear in their logarithm, level beyond the ends."""
        return float(np.interp(math.log(carried), self._log_bytes, self._nats))

    def bytes_to_read(self, nats: float) -> float:
        """What a window carries that reads as well: 0 if the smallest reads better, inf if none."""
        # ascending, each with the first window that reaches it
        best, first = np.unique(np.minimum.accumulate(self._nats), return_index=True)
        if nats > best[-1]:
            return 0.0
        if nats < best[0]:
            return math.inf
        return math.exp(np.interp(nats, best, self._log_bytes[first]))

    def tokens(self, carried: float) -> float:
        """How many tokens' keys and values are so many bytes."""
        return carried / self._token
