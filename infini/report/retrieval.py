"""Facts retrieved, by how far back they are and among how many."""

from typing import Any

import numpy as np
import pandas as pd

from infini.report.cells import Rounded
from infini.report.tables import BASE_PROTOCOLS


def exact_by(cases: dict[str, pd.DataFrame], task: str, place: str) -> pd.DataFrame:
    """Retrieved exactly, in per cent: a row a `distance` or number of `pairs`, a column a version.

    Distances are in powers of two (…, 64, 128, … as lower ends). Empty where no case tells them.
    """
    columns: dict[str, pd.Series[Any]] = {}
    for version, table in cases.items():
        rows = table[table["task"] == task]
        if rows.empty or place not in rows:
            continue
        where = rows[place]
        if place == "distance":
            where = 2 ** np.log2(where).astype(int)
        names = {"exact": version}
        if version == "base":
            names = {"exact": BASE_PROTOCOLS["segmented"], "exact_full": BASE_PROTOCOLS["full"]}
        for figure, name in names.items():
            if figure in rows:
                columns[name] = 100 * rows[figure].groupby(where).mean()
    found = pd.DataFrame(columns).sort_index()
    cells = found.map(lambda share: None if pd.isna(share) else Rounded(share, 0)).astype(object)
    return cells.rename(index=lambda row: f"{row:,}")
