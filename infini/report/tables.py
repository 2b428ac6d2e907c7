"""The report's tables: data frames of cells (see cells.py), computed from results."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from infini.evaluation.estimates import Estimate, curve, flatten
from infini.report.cells import Cell, Change, Rounded
from infini.report.findings import pays
from infini.report.results import Figures, at_windows
from infini.report.window_curve import WindowCurve
from infini.training.config import VersionConfig

# The rows of the research log's table "v1 vs v2": label, metric.
LOG_ROWS = {
    "Distillation epochs": "distill.epochs",
    "Distillation loss (test)": "distill.test_loss",
    "Original PPL": "distill.ppl_original",
    "Distilled PPL": "distill.ppl_distilled",
    "PPL gap (distillation)": "distill.ppl_gap",
    "Finetune epochs": "finetune.epochs",
    "Best finetune epoch": "finetune.best_epoch",
    "Long-context PPL before": "finetune.ppl_before",
    "Long-context PPL after": "finetune.ppl_after",
    "Long-context PPL, memory kept empty": "memory_off.ppl",
    "Memory's gain over kept empty, nats a token": "memory.gain",
    "Gain at equal bytes, nats a token": "equal_bytes.gain",
    "Against blind segments: nats a token above": "vs_base.nats",
    "Against blind segments: context recovery, %": "context_recovery.share",
}
# The columns of the tables of all versions: label, metric.
HEADLINE = {
    "nats a token": "documents.nats",
    "bytes": "bytes.total",
    "gain at equal bytes": "equal_bytes.gain",
    "worth": "control.worth",
    "recovery, %": "recovery.share",
    "pays": "pays",
}
BYTES = {
    "exact keys and values": "bytes.exact",
    "pending copies": "bytes.pending",
    "memory": "bytes.memory",
    "total": "bytes.total",
}
PERPLEXITY = {
    "documents": "documents.ppl",
    "base, window of equal bytes": "equal_bytes.ppl",
    "that window, tokens": "equal_bytes.window",
    "its control": "control.ppl",
    "memory kept empty": "memory_off.ppl",
    "another document's memory": "memory_swapped.ppl",
    "short samples": "short.ppl",
    "bits per byte, documents": "documents.bits_per_byte",
}
DIFFERENCES = {
    "gain over memory kept empty": "memory.gain",
    "gain over another document's memory": "memory.swapped_gain",
    "passkey: gain over memory kept empty": "passkey.gain",
    "against blind segments: nats above": "vs_base.nats",
    "against blind segments: context recovery, %": "context_recovery.share",
    "parameters added": "cost.parameters",
}
# What the untouched base has of these.
BLIND_SEGMENTS = {
    "nats a token": "segmented.nats",
    "bytes": "bytes.total",
    **BYTES,
    "documents": "segmented.ppl",
    "short samples": "short.ppl",
    "bits per byte, documents": "segmented.bits_per_byte",
}
FULL_ATTENTION = {
    "nats a token": "full.nats",
    "bytes": "full.bytes",
    "exact keys and values": "full.bytes",
    "total": "full.bytes",
    "documents": "full.ppl",
    "bits per byte, documents": "full.bits_per_byte",
}
SHARES = {"recovery.share", "context_recovery.share"}  # shown in per cent
WINDOW = {
    "bytes": "bytes",
    "nats a token": "nats",
    "perplexity": "ppl",
    "bits per byte": "bits_per_byte",
}
RETRIEVAL = {
    "log-probability": "log_prob",
    "– memory kept empty": "log_prob_off",
    "memory's gain": "gain",
    "mean rank": "rank",
    "– memory kept empty ": "rank_off",
    "exact": "exact",
    "– memory kept empty  ": "exact_off",
    "– full attention": "exact_full",
}
AUDIT_COLUMNS = {
    "next token, before": "before.segmented.ppl",
    "after": "after.segmented.ppl",
    "after, memory kept empty": "after.memory_off.ppl",
    "token after next, before": "before.double_shift.ppl",
    "after ": "after.double_shift.ppl",
    "nats above the version": "vs_version.nats",
}
BASE_PROTOCOLS = {"segmented": "base, blind segments", "full": "base, full attention"}
COSTS = {"state_bytes": "bytes", "tokens_per_second": "tokens/s", "peak_mib": "peak MiB"}


def all_versions(figures: dict[str, Figures], columns: dict[str, str]) -> pd.DataFrame:
    """A row a version, label → metric in its columns; before them what the base has of these."""
    rows = {}
    for name, its in {"blind segments": BLIND_SEGMENTS, "full attention": FULL_ATTENTION}.items():
        if its.keys() & columns.keys():
            known = {label: its.get(label, "") for label in columns}
            rows[f"base, {name}"] = row_of(figures["base"], known)
    rows |= {v: row_of(found, columns) for v, found in figures.items() if v != "base"}
    return frame(rows)


def other_windows(figures: dict[str, Figures]) -> pd.DataFrame:
    """A row a version and window that it was read with besides its own."""
    return frame(
        {
            f"{version}, window {size}": row_of(its, HEADLINE)
            for version, found in figures.items()
            for size, its in at_windows(found).items()
        }
    )


def windows(base: Figures, curve: WindowCurve) -> pd.DataFrame:
    """The base's window curve: a row a window of so many last tokens, then full attention."""
    return frame(
        {
            point.name: row_of(
                base, {label: f"{point.key}.{name}" for label, name in WINDOW.items()}
            )
            for point in curve.points
        }
    )


def versus(figures: dict[str, Figures], metrics: dict[str, str]) -> pd.DataFrame:
    """A row a metric; columns v1 | v2 | change: the versions, each compared with the first."""
    first = next(iter(figures))
    rows: dict[str, dict[str, Cell]] = {}
    for label, key in metrics.items():
        if not any(key in found for found in figures.values()):
            continue
        rows[label] = {}
        for version, found in figures.items():
            rows[label][version] = figure = _figure(found, key)
            if version != first:
                column = "change" if len(figures) == 2 else f"{version} vs {first}"
                rows[label][column] = Change(_figure(figures[first], key), figure)
    return frame(rows)


def block(figures: dict[str, Figures], name: str) -> pd.DataFrame:
    """The metrics `<name>.…`: a row each, a column a version that has any."""
    columns = {
        version: {
            key.removeprefix(f"{name}."): figure
            for key, figure in found.items()
            if key.startswith(f"{name}.")
        }
        for version, found in figures.items()
    }
    return frame({version: column for version, column in columns.items() if column}).T


def retrieval(figures: dict[str, Figures], task: str) -> pd.DataFrame:
    """Of `passkey` or `recall`: a row a version."""
    columns = {label: f"{task}.{name}" for label, name in RETRIEVAL.items()}
    return frame({version: row_of(found, columns) for version, found in figures.items()})


def perplexity_by(losses: dict[str, pd.DataFrame], place: str) -> pd.DataFrame:
    """Perplexity by `segment` or `distance`: a row each, a column a version."""
    columns = {}
    for version, table in losses.items():
        names = BASE_PROTOCOLS if version == "base" else {"documents": version}
        for protocol, name in names.items():
            columns[name] = curve(table[table["protocol"] == protocol], place)
    return pd.DataFrame(columns, dtype=object).rename(index=str)


def settings(versions: Mapping[str, VersionConfig]) -> tuple[pd.DataFrame, frozenset[str]]:
    """A row a setting, a column a version; and which rows differ between versions."""
    columns = {
        version: {key: _setting(value) for key, value in flatten(recipe.blocks()).items()}
        for version, recipe in versions.items()
    }
    table = frame(columns).T
    differ = (key for key, row in table.iterrows() if len(set(row) - {None}) > 1)
    return table, frozenset(differ)


def _setting(value: Any) -> Cell:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "unset" if value is None else value


def double_shift(figures: dict[str, Figures], replacements: list[str]) -> pd.DataFrame:
    """The same models by the next token and by the log's loop, on the same documents."""
    final = ("double_shift.next_token_ppl", "double_shift.ppl")
    before = ("finetune.double_shift_next_before", "finetune.double_shift_before")
    models = {"untouched base": ("base", *final)}
    for version in replacements:
        first = "distilled" if "distill.epochs" in figures[version] else "untrained"
        models[f"{version} {first}"] = (version, *before)
        models[f"{version} finetuned"] = (version, *final)
    return frame(
        {
            label: row_of(
                figures[version],
                {"next token": next_token, "token after next (the log's loop)": shifted},
            )
            for label, (version, next_token, shifted) in models.items()
        }
    )


def audits(found: dict[str, Figures], asked: dict[str, Any]) -> pd.DataFrame:
    """A row an audit: both scores before and after the documents, and against the version."""
    return frame(
        {
            asked[name].question: {"version": asked[name].of, **row_of(figures, AUDIT_COLUMNS)}
            for name, figures in found.items()
        }
    )


def times(taken: dict[str, dict[str, float]]) -> pd.DataFrame:
    """A row a stage: seconds of work, of imports before it, of an epoch; and their sums."""
    columns = {
        "seconds": ("seconds", 1),
        "imports": ("startup", 1),
        "an epoch": ("seconds_per_epoch", 2),
    }
    sums = {key: sum(time[key] for time in taken.values()) for key in ("seconds", "startup")}
    return frame(
        {
            name: {
                label: Rounded(time[key], places) if key in time else None
                for label, (key, places) in columns.items()
            }
            for name, time in {**taken, "sum": sums}.items()
        }
    )


def prepared(counts: dict[str, dict[str, int]]) -> pd.DataFrame:
    """A row a split: how many texts, tokens, characters, samples and documents."""
    return frame(counts)


def listed(pairs: dict[str, str]) -> pd.DataFrame:
    """A row a label, its text in the one column, which has no name."""
    return frame({label: {"": text} for label, text in pairs.items()})


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """A row a length, a column a version and figure."""
    columns = {
        f"{version}, {label}": rows.set_index("length")[name].map(round)
        for name, label in COSTS.items()
        for version, rows in table.groupby("version", sort=False)
    }
    return pd.DataFrame(columns, dtype=object).rename(index=lambda length: f"{length:,}")


def row_of(found: Figures, columns: dict[str, str]) -> dict[str, Cell]:
    """The figures of `columns`, label → metric, by label."""
    return {label: _cell(found, key) for label, key in columns.items()}


def _cell(found: Figures, key: str) -> Cell:
    return pays(found) if key == "pays" and key in found else _figure(found, key)


def _figure(found: Figures, key: str) -> Estimate | None:
    """A figure, shares in per cent."""
    figure = found.get(key)
    return figure.scaled(100) if figure and key in SHARES else figure


def frame(rows: Mapping[str, Mapping[str, Cell]]) -> pd.DataFrame:
    """Rows of cells as they are: columns are neither sorted nor converted."""
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    cells = {column: [row.get(column) for row in rows.values()] for column in columns}
    return pd.DataFrame(cells, index=list(rows), dtype=object)
