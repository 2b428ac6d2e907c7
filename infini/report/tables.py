"""Tables of the report: data frames of text, a row or a column a version."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from infini.evaluation.config import ORACLE, PLAIN_WINDOW
from infini.evaluation.estimates import Estimate
from infini.files import flatten
from infini.report.cells import MISSING, Cell, show, show_change
from infini.report.policies import ScoredPolicy, best_policy
from infini.report.results import Figures, Results, figures_at_windows
from infini.report.verdict import is_undecided
from infini.training.config import VersionConfig

SEGMENTED, FULL = "base, segments without memory", "base, full attention"

# Columns and rows of the tables over all versions: label, metric.
HEADLINE = {
    "nats per token": "documents.nats",
    "state bytes": "state_bytes.total",
    "gain over the baseline": "baseline.gain",
    "gain over the control": "control.gain",
    "recovery, %": "recovery.share",
    "beats both": "beats_both",
}
STATE_BYTES = {
    "exact keys and values": "state_bytes.exact",
    "pending copies": "state_bytes.pending",
    "memory": "state_bytes.memory",
    "total": "state_bytes.total",
}
PERPLEXITY = {
    "documents": "documents.ppl",
    "window of equal state bytes": "baseline.ppl",
    "tokens of that window": "baseline.window",
    "shuffled-memory control": "control.ppl",
    "memory off": "memory_off.ppl",
    "memory swapped": "memory_swapped.ppl",
    "short samples": "short.ppl",
    "documents, bits per byte": "documents.bits_per_byte",
}
OTHER_GAINS = {
    "gain over the window of equal state bytes": "window.gain",
    "gain over memory off": "memory_off.gain",
    "gain over memory swapped": "memory_swapped.gain",
    "pass keys: gain over memory off": "passkey.gain",
    "above segments without memory": "vs_segmented.nats",
    "recovery from segments without memory, %": "vs_segmented.recovery",
    "added parameters": "added_parameters",
}
# Metrics of the untouched base under the same labels.
BASE_METRICS = {
    SEGMENTED: {
        "nats per token": "segmented.nats",
        "state bytes": "state_bytes.total",
        **STATE_BYTES,
        "documents": "segmented.ppl",
        "short samples": "short.ppl",
        "documents, bits per byte": "segmented.bits_per_byte",
    },
    FULL: {
        "nats per token": "full.nats",
        "state bytes": "full.state_bytes",
        "exact keys and values": "full.state_bytes",
        "total": "full.state_bytes",
        "documents": "full.ppl",
        "documents, bits per byte": "full.bits_per_byte",
    },
}
WINDOW_COLUMNS = {
    "state bytes": "state_bytes",
    "nats per token": "nats",
    "perplexity": "ppl",
    "bits per byte": "bits_per_byte",
}
# Rows of the research log's own table.
LOG_ROWS = {
    "distillation epochs": "distill.epochs",
    "distillation loss (test)": "distill.test_loss",
    "original perplexity": "distill.ppl_original",
    "distilled perplexity": "distill.ppl_distilled",
    "perplexity gap (distillation)": "distill.ppl_gap",
    "finetuning epochs": "finetune.epochs",
    "best finetuning epoch": "finetune.best_epoch",
    "long-context perplexity before": "finetune.ppl_before",
    "long-context perplexity after": "finetune.ppl_after",
}
RETRIEVAL_COLUMNS = {
    "exact, %": "exact",
    "exact, memory off, %": "exact_off",
    "exact, full attention, %": "exact_full",
    "log-probability of the answer, nats": "log_prob",
    "log-probability of the answer, memory off, nats": "log_prob_off",
    "gain over memory off, nats": "gain",
    "mean rank of the answer's tokens": "rank",
    "mean rank of the answer's tokens, memory off": "rank_off",
}
COST_LABELS = {
    "state_bytes": "state bytes",
    "tokens_per_second": "tokens per second",
    "peak_mib": "peak memory, MiB",
}
SHARES = {  # shown in per cent
    "recovery.share",
    "vs_segmented.recovery",
    *(
        f"{task}.{key}"
        for task in ("passkey", "recall")
        for key in ("exact", "exact_off", "exact_full")
    ),
}


def text_frame(rows: Mapping[str, Mapping[str, Cell]]) -> pd.DataFrame:
    """Format rows of cells by label; a missing cell is a dash."""
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    text = {c: [show(row[c]) if c in row else MISSING for row in rows.values()] for c in columns}
    return pd.DataFrame(text, index=list(rows), dtype=object)


def row_of_figures(figures: Figures, columns: Mapping[str, str]) -> dict[str, Cell]:
    """Return the figures of `columns` (label → metric) that are there, by label."""
    return {
        label: cell for label, key in columns.items() if (cell := _figure(figures, key)) is not None
    }


def _figure(figures: Figures, key: str) -> Cell:
    """Return a figure: shares in per cent, `beats_both` as yes, no or undecided."""
    figure = figures.get(key)
    if figure is not None and key == "beats_both":
        return "undecided" if is_undecided(figures) else figure.value == 1
    return figure.scaled(100) if figure is not None and key in SHARES else figure


def versions_table(figures: dict[str, Figures], columns: dict[str, str]) -> pd.DataFrame:
    """Return a row a version with the metrics of `columns`, after the base's where it has any."""
    rows: dict[str, dict[str, Cell]] = {}
    for name, metrics in BASE_METRICS.items():
        if "base" in figures and metrics.keys() & columns.keys():
            known = {label: metrics[label] for label in columns if label in metrics}
            rows[name] = row_of_figures(figures["base"], known)
    rows |= {
        v: row_of_figures(version_figures, columns)
        for v, version_figures in figures.items()
        if v != "base"
    }
    return text_frame(rows).reindex(columns=list(columns), fill_value=MISSING)


def headline_table(results: Results) -> pd.DataFrame:
    """Return a row a version, its baseline named."""
    table = versions_table(results.figures, HEADLINE)
    names = {name: _baseline_name(results, name) for name in results.figures if name != "base"}
    return with_baselines(table, names)


def other_windows_table(results: Results) -> pd.DataFrame:
    """Return a row a version and window that it was evaluated with besides its own."""
    rows, names = {}, {}
    for version, whole in results.figures.items():
        for size, figures in figures_at_windows(whole).items():
            label = f"{version}, window {size}"
            rows[label] = row_of_figures(figures, HEADLINE)
            names[label] = _baseline_name(results, version, size)
    return with_baselines(text_frame(rows), names)


def _baseline_name(results: Results, version: str, window: int | None = None) -> str:
    """Return the opponent that a version's gain over the baseline is measured against."""
    policy = results.opponent(version, window)
    if policy is not None:
        return policy.name
    key = "baseline.gain" if window is None else f"at_window_{window}.baseline.gain"
    return PLAIN_WINDOW if key in results.figures[version] else MISSING


def with_baselines(table: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Insert the column "baseline" before the gain over it."""
    if len(table):
        place = list(table.columns).index("gain over the baseline")
        table.insert(place, "baseline", [names.get(row, MISSING) for row in table.index])
    return table


def policies_table(policies: list[ScoredPolicy]) -> pd.DataFrame:
    """Return a row a retention policy of the same state bytes, the best on test text first."""
    best = best_policy(policies, policies[0].window_size)
    window = next((policy for policy in policies if policy.name == PLAIN_WINDOW), None)
    rows: dict[str, dict[str, Cell]] = {}
    for policy in sorted(policies, key=lambda policy: policy.nats("test").value):
        row: dict[str, Cell] = {
            "pairs": policy.retained,
            "state bytes": policy.state_bytes,
            "nats, validation": policy.nats("val").value,
            "nats, test": policy.nats("test"),
        }
        if window is not None and policy is not window:
            row["gain over the window"] = policy.gain_over(window)
        name = policy_label(policy.name)
        rows[f"**{name}**" if policy is best else name] = row
    return text_frame(rows)


def policy_label(name: str) -> str:
    """Return a policy's name for a reader, the oracle marked."""
    return f"{name} (looks ahead)" if name == ORACLE else name


def ruler_table(tables: Mapping[str, pd.DataFrame], figure: str) -> pd.DataFrame:
    """Return a row a task and length, a column a policy.

    Args:
        tables: Retrieval by policy (`report.policies.read_ruler`).
        figure: exact, in per cent, or nats of the answer's tokens.
    """
    factor = 100 if figure == "exact" else 1
    cells: dict[str, dict[str, Cell]] = {}
    for policy, table in tables.items():
        for row in table.to_dict("records"):
            name = f"{row['task']}, {row['length']:,} tokens"
            estimate = Estimate(row[figure], row[f"{figure}_se"]).scaled(factor)
            cells.setdefault(name, {})[policy] = estimate
    return text_frame(cells).reindex(columns=list(tables))


def window_curve_table(base: Figures) -> pd.DataFrame:
    """Return a row a sliding window of the untouched base, by size, then full attention."""
    names = {protocol.removeprefix("window_"): protocol for protocol in base_windows(base)}
    return text_frame(
        {
            name: row_of_figures(base, {c: f"{key}.{m}" for c, m in WINDOW_COLUMNS.items()})
            for name, key in names.items()
        }
    )


def base_windows(base: Figures) -> list[str]:
    """Return the base's protocols `window_<size>` and `full`, by state bytes."""
    protocols = {key.partition(".")[0] for key in base if key.startswith("window_")} | {"full"}
    return sorted(protocols, key=lambda protocol: base[f"{protocol}.state_bytes"].value)


def research_log_table(figures: dict[str, Figures]) -> pd.DataFrame:
    """Return the research log's rows, a column a replacement and its change from the first."""
    first, *others = figures
    columns: dict[str, list[str]] = {first: [], **{v: [] for v in others}}
    columns |= {"change" if len(others) == 1 else f"{v} against {first}": [] for v in others}
    rows = {
        k: m
        for k, m in LOG_ROWS.items()
        if any(m in version_figures for version_figures in figures.values())
    }
    for metric in rows.values():
        cells = [version_figures.get(metric) for version_figures in figures.values()]
        changes = [show_change(cells[0], cell) for cell in cells[1:]]
        for column, text in zip(columns.values(), [*map(show, cells), *changes], strict=True):
            column.append(text)
    return pd.DataFrame(columns, index=list(rows), dtype=object)


def double_shift_table(figures: dict[str, Figures], replacements: list[str]) -> pd.DataFrame:
    """Return perplexities by the next token and by the log's loop, on the same documents."""
    final = ("double_shift.next_token_ppl", "double_shift.ppl")
    before = ("finetune.double_shift_next_before", "finetune.double_shift_before")
    models = {"untouched base": ("base", final)} if "base" in figures else {}
    for version in replacements:
        first = "distilled" if "distill.epochs" in figures[version] else "untrained"
        models[f"{version} {first}"] = (version, before)
        models[f"{version} finetuned"] = (version, final)
    labels = ("next token", "token after next (the log's loop)")
    return text_frame(
        {
            label: row_of_figures(figures[version], dict(zip(labels, keys, strict=True)))
            for label, (version, keys) in models.items()
        }
    )


def block_table(figures: dict[str, Figures], name: str) -> pd.DataFrame:
    """Return all metrics `<name>.…`: a row each, a column a version that has any."""
    columns = {
        version: {
            key.removeprefix(f"{name}."): figure
            for key, figure in version_figures.items()
            if key.startswith(f"{name}.")
        }
        for version, version_figures in figures.items()
    }
    return text_frame({version: column for version, column in columns.items() if column}).T


def retrieval_table(figures: dict[str, Figures], task: str) -> pd.DataFrame:
    """Return a row a version: retrieval metrics of `passkey` or `recall`."""
    columns = {label: f"{task}.{name}" for label, name in RETRIEVAL_COLUMNS.items()}
    rows = {
        version: row_of_figures(version_figures, columns)
        for version, version_figures in figures.items()
    }
    return text_frame({version: row for version, row in rows.items() if row})


def version_curves_table(curves: dict[str, pd.DataFrame], curve: str) -> pd.DataFrame:
    """Return one curve of all versions: a row an x, a column a version or base protocol.

    Shares (curves of `exact`) are in per cent.
    """
    names = {"segmented": SEGMENTED, "full": FULL}
    factor = 100 if "exact" in curve else 1
    columns: dict[str, dict[int, Cell]] = {}
    for version, table in curves.items():
        for series, rows in table[table["curve"] == curve].groupby("series", sort=False):
            label = names.get(str(series), "base") if version == "base" else version
            columns[label] = {
                int(x): Estimate(value, None if pd.isna(se) else se).scaled(factor)
                for x, value, se in zip(rows["x"], rows["value"], rows["se"], strict=True)
            }
    rows_at = sorted({x for column in columns.values() for x in column})
    cells = {
        f"{x:,}": {label: column[x] for label, column in columns.items() if x in column}
        for x in rows_at
    }
    return text_frame(cells).reindex(columns=list(columns))


def settings_table(versions: Mapping[str, VersionConfig]) -> pd.DataFrame:
    """Return a row a setting, a column a version."""
    return text_frame(
        {
            version: {key: _setting(value) for key, value in flatten(config.blocks()).items()}
            for version, config in versions.items()
        }
    ).T


def _setting(value: Any) -> Cell:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else value


def cost_table(costs: pd.DataFrame) -> pd.DataFrame:
    """Return a row a version and length, a column a figure."""
    return text_frame(
        {
            f"{row['version']}, {row['length']:,} tokens": {
                label: round(row[name]) for name, label in COST_LABELS.items()
            }
            for row in costs.to_dict("records")
        }
    )


def time_table(times: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return a row a stage: seconds of work, of imports before it, and of an epoch; their sums."""
    labels = {"seconds": "seconds", "imports": "startup", "an epoch": "seconds_per_epoch"}
    sums = {key: sum(time[key] for time in times.values()) for key in ("seconds", "startup")}
    return text_frame(
        {
            stage: {label: f"{time[key]:.1f}" for label, key in labels.items() if key in time}
            for stage, time in {**times, "sum": sums}.items()
        }
    )


def list_table(pairs: Mapping[str, str]) -> pd.DataFrame:
    """Return a row a label, with its text in one column."""
    return pd.DataFrame({"value": list(pairs.values())}, index=list(pairs), dtype=object)
