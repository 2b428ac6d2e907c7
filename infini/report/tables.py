"""The report's tables: data frames of cells (see cells.py), computed from results."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from infini.evaluation.estimates import curve, flatten
from infini.report.cells import Cell, Change, Rounded
from infini.report.results import Figures
from infini.training.config import Audit, Version

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
    "Memory's gain, nats a token": "memory.gain",
    "Nats a token above the base": "vs_base.nats",
    "Context recovery": "context_recovery.share",
}
# The columns of the table of all versions: label, metric.
COLUMNS = {
    "PPL by segments": "segmented.ppl",
    "memory kept empty": "memory_off.ppl",
    "bits per byte": "segmented.bits_per_byte",
    "PPL of short samples": "short.ppl",
    "nats above the base": "vs_base.nats",
    "memory's gain, nats": "memory.gain",
    "context recovery": "context_recovery.share",
    "passkey gain, nats": "passkey.gain",
    "parameters added": "cost.parameters",
    "bytes carried": "cost.state_bytes",
}
# Those of them that the base has with full attention too.
FULL_ATTENTION = {"PPL by segments": "sliding.ppl", "bits per byte": "sliding.bits_per_byte"}
PASSKEY = {
    "log-probability": "passkey.log_prob",
    "– memory kept empty": "passkey.log_prob_off",
    "memory's gain": "passkey.gain",
    "mean rank": "passkey.rank",
    "– memory kept empty ": "passkey.rank_off",
    "exact": "passkey.exact",
    "– memory kept empty  ": "passkey.exact_off",
}
AUDIT_COLUMNS = {
    "next token, before": "before.segmented.ppl",
    "after": "after.segmented.ppl",
    "after, memory kept empty": "after.memory_off.ppl",
    "token after next, before": "before.double_shift.ppl",
    "after ": "after.double_shift.ppl",
    "nats above the version": "vs_version.nats",
}
COSTS = {"state_bytes": "bytes", "tokens_per_second": "tokens/s", "peak_mib": "peak MiB"}


def all_versions(figures: dict[str, Figures]) -> pd.DataFrame:
    """A row a version; behind the base's its figures with full attention."""
    rows = {}
    for version, found in figures.items():
        rows[version] = _row(found, COLUMNS)
        if "sliding.ppl" in found:
            rows[f"{version}, full attention"] = _row(found, FULL_ATTENTION)
    return _frame(rows)


def versus(figures: dict[str, Figures], metrics: dict[str, str]) -> pd.DataFrame:
    """A row a metric; columns v1 | v2 | change: the versions, each compared with the first."""
    first = next(iter(figures))
    rows: dict[str, dict[str, Cell]] = {}
    for label, key in metrics.items():
        if not any(key in found for found in figures.values()):
            continue
        rows[label] = {}
        for version, found in figures.items():
            rows[label][version] = found.get(key)
            if version != first:
                column = "change" if len(figures) == 2 else f"{version} vs {first}"
                rows[label][column] = Change(figures[first].get(key), found.get(key))
    return _frame(rows)


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
    return _frame({version: column for version, column in columns.items() if column}).T


def retrieval(figures: dict[str, Figures]) -> pd.DataFrame:
    """Passkey: a row a version."""
    return _frame({version: _row(found, PASSKEY) for version, found in figures.items()})


def perplexity_by(losses: dict[str, pd.DataFrame], place: str) -> pd.DataFrame:
    """Perplexity by `segment` or `distance`: a row each, a column a version."""
    columns = {}
    for version, table in losses.items():
        for protocol, name in (("segmented", version), ("sliding", f"{version}, full attention")):
            if len(part := table[table["protocol"] == protocol]):
                columns[name] = curve(part, place)
    return pd.DataFrame(columns, dtype=object).rename(index=str)


def settings(versions: Mapping[str, Version]) -> tuple[pd.DataFrame, frozenset[str]]:
    """A row a setting, a column a version; and which rows differ between versions."""
    columns = {
        version: {key: _setting(value) for key, value in flatten(recipe.blocks()).items()}
        for version, recipe in versions.items()
    }
    table = _frame(columns).T
    differ = (key for key, row in table.iterrows() if len(set(row) - {None}) > 1)
    return table, frozenset(differ)


def _setting(value: Any) -> Cell:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else value


def double_shift(figures: dict[str, Figures], replacements: list[str]) -> pd.DataFrame:
    """The same models by the next token and by the log's loop, on the same documents."""
    final = ("double_shift.next_token_ppl", "double_shift.ppl")
    distilled = ("finetune.double_shift_next_before", "finetune.double_shift_before")
    models = {"untouched base": ("base", *final)}
    for version in replacements:
        models[f"{version} distilled"] = (version, *distilled)
        models[f"{version} finetuned"] = (version, *final)
    return _frame(
        {
            label: _row(
                figures[version],
                {"next token": next_token, "token after next (the log's loop)": shifted},
            )
            for label, (version, next_token, shifted) in models.items()
        }
    )


def audits(found: dict[str, Figures], asked: dict[str, Audit]) -> pd.DataFrame:
    """A row an audit: both scores before and after the documents, and against the version."""
    return _frame(
        {
            asked[name].question: {"version": asked[name].of, **_row(figures, AUDIT_COLUMNS)}
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
    return _frame(
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
    return _frame(counts)


def listed(pairs: dict[str, str]) -> pd.DataFrame:
    """A row a label, its text in the one column, which has no name."""
    return _frame({label: {"": text} for label, text in pairs.items()})


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """A row a length, a column a version and figure."""
    columns = {
        f"{version}, {label}": rows.set_index("length")[name].map(round)
        for name, label in COSTS.items()
        for version, rows in table.groupby("version", sort=False)
    }
    return pd.DataFrame(columns, dtype=object).rename(index=lambda length: f"{length:,}")


def _row(found: Figures, columns: dict[str, str]) -> dict[str, Cell]:
    """The figures of `columns`, label → metric, by label."""
    return {label: found.get(key) for label, key in columns.items()}


def _frame(rows: Mapping[str, Mapping[str, Cell]]) -> pd.DataFrame:
    """Rows of cells as they are: columns are neither sorted nor converted."""
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    cells = {column: [row.get(column) for row in rows.values()] for column in columns}
    return pd.DataFrame(cells, index=list(rows), dtype=object)
