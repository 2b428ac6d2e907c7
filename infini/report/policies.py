"""Retention policies of equal state bytes: which is best, and versions against it.

The plain window is one of them. Of all that have a version's state bytes, the best on validation
documents is the version's baseline; gains over it are of test documents, paired by document.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from infini.evaluation.config import ORACLE, PLAIN_WINDOW
from infini.evaluation.estimates import NATS_BY_DOCUMENT, Estimate, difference, ratio
from infini.files import read_table
from infini.paths import POLICIES, RULER

FILE_NAME = re.compile(r"(\w+)-(\d+)-(\d+)")  # `Budget.file_name`, without suffix


class ScoredPolicy(NamedTuple):
    """Nats by document of a retention policy at some state bytes."""

    name: str
    window_size: int  # of the plain window of equal state bytes, in tokens
    window: int  # of the policy, in tokens
    table: pd.DataFrame  # split, piece, text, tokens, bytes, retained, state_bytes, nats

    @property
    def retained(self) -> int:
        """Retained pairs of a key-value head."""
        return int(self.table["retained"].iloc[0])

    @property
    def state_bytes(self) -> int:
        """Bytes of the state, the policy's own included."""
        return int(self.table["state_bytes"].iloc[0])

    @property
    def label(self) -> str:
        """Name for a reader, with window and number of pairs."""
        if self.name == PLAIN_WINDOW:
            return f"window of {self.window_size} tokens"
        return f"{self.name}, window {self.window} + {self.retained} pairs"

    def nats(self, split: str) -> Estimate:
        """Return nats per token of a split."""
        texts = self.losses(split).groupby("text")[["nats", "tokens"]].sum()
        return ratio(texts["nats"], texts["tokens"])

    def losses(self, split: str) -> pd.DataFrame:
        """Return a loss table of a split: nats are sums over a document."""
        return _as_losses(self.table[self.table["split"] == split])

    def gain_over(self, other: "ScoredPolicy") -> Estimate:
        """Return nats per token below another policy on test documents."""
        gain = difference(other.losses("test"), self.losses("test"))
        return gain._replace(difference=True)


def read_policies(root: Path = Path()) -> list[ScoredPolicy]:
    """Read reports/policies of a run in folder `root`: all scored policies, by budget and name."""
    found = []
    for file in sorted((root / POLICIES).glob("*.csv")):
        if match := FILE_NAME.fullmatch(file.stem):
            table = read_table(
                file, "split", "piece", "text", "tokens", "bytes", "retained", "nats"
            )
            found.append(ScoredPolicy(match[1], int(match[2]), int(match[3]), table))
    return sorted(found, key=lambda policy: (policy.window_size, policy.window, policy.name))


def read_ruler() -> dict[str, pd.DataFrame]:
    """Read reports/ruler: retrieval by task and length, by label of the policy."""
    tables = {}
    for file in sorted(RULER.glob("*.csv")):
        if match := FILE_NAME.fullmatch(file.stem):
            table = read_table(file, "length", "texts", "exact", "nats")
            label = match[1] if match[1] == "full" else f"{match[1]}, {match[2]} tokens"
            tables[label] = table
    return tables


def summarize_policies(policies: list[ScoredPolicy]) -> pd.DataFrame:
    """Return a row a policy and budget, with nats per token and their standard error on test."""
    rows = []
    for policy in policies:
        test = policy.nats("test")
        rows.append(
            {
                "policy": policy.name,
                "policy_window": policy.window,
                "window_size": policy.window_size,
                "retained": policy.retained,
                "state_bytes": policy.state_bytes,
                "val_nats": policy.nats("val").value,
                "test_nats": test.value,
                "test_nats_se": test.error,
            }
        )
    return pd.DataFrame(rows)


def have_curves(policies: list[ScoredPolicy]) -> bool:
    """Return whether a policy was scored at several state bytes with the same window."""
    places = [(policy.name, policy.window) for policy in policies if policy.name != PLAIN_WINDOW]
    return len(set(places)) < len(places)


def best_policy(policies: list[ScoredPolicy], window_size: int) -> ScoredPolicy | None:
    """Return the policy of these state bytes that is best on validation documents; None: no such.

    Args:
        policies: All that were scored.
        window_size: Size of the plain window of the same state bytes, in tokens.
    """
    candidates = [x for x in policies if x.window_size == window_size and x.name != ORACLE]
    return min(candidates, key=lambda policy: policy.nats("val").value, default=None)


def gains_over_policy(curves: pd.DataFrame, policy: ScoredPolicy, protocol: str) -> list[Estimate]:
    """Compare a version with a policy on the same test documents.

    Args:
        curves: The version's curves, nats by document among them.
        policy: Its opponent.
        protocol: Protocol of the version, such as documents.

    Returns:
        Nats per token below the policy, for every seed that has nats by document.
    """
    own = policy.table[policy.table["split"] == "test"].set_index("piece", drop=False)
    series = curves["series"].where(curves["curve"] == NATS_BY_DOCUMENT, "").astype(str)
    gains = []
    for _, rows in curves[series.str.fullmatch(rf"{protocol}( seed \d+)?")].groupby("series"):
        nats = rows.set_index("x")["value"]
        nats.index = nats.index.astype(int)
        scored = own.assign(nats=nats).dropna(subset="nats").reset_index(drop=True)
        if len(scored):
            gain = difference(policy.losses("test"), _as_losses(scored))
            gains.append(gain._replace(difference=True))
    return gains


def _as_losses(table: pd.DataFrame) -> pd.DataFrame:
    """Return nats per token as sums over each document."""
    return table.assign(nats=table["nats"] * table["tokens"])
