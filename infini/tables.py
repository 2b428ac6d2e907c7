"""The report's tables, their cells printable; pure functions of metrics and params."""

from typing import Any

import pandas as pd

from infini.cells import Figure, change, figures, is_noise, show
from infini.params import Adapter, Audit, Replacement
from infini.scores import curve

NOISE = " ~"  # behind a figure that is less than two errors from none

# The rows of the seed's table "v1 vs v2": label, metric.
SEED_ROWS = {
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
# The columns of the table of all versions.
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
DIFFERENCES = (
    "vs_base.nats",
    "memory.gain",
    "context_recovery.share",
    "passkey.gain",
    "vs_version.nats",
)
# Reads the whole document at once: the base's other row.
CEILING = {"PPL by segments": "sliding.ppl", "bits per byte": "sliding.bits_per_byte"}
PASSKEY = {
    "log-probability": "log_prob",
    "– memory kept empty": "log_prob_off",
    "memory's gain": "gain",
    "mean rank": "rank",
    "– memory kept empty ": "rank_off",
    "exact": "exact",
    "– memory kept empty  ": "exact_off",
}

Metrics = dict[str, dict[str, Any]]


def cell(found: dict[str, Figure], key: str) -> str:
    """A metric as it is printed."""
    if key not in found:
        return "–"
    text = show(*found[key])
    return text + NOISE if key in DIFFERENCES and is_noise(*found[key]) else text


def all_versions(metrics: Metrics) -> pd.DataFrame:
    """A row a version, the base with full attention last of the base's."""
    rows = {}
    for version, tree in metrics.items():
        found = figures(tree)
        rows[version] = {label: cell(found, key) for label, key in COLUMNS.items()}
        if "sliding.ppl" in found:
            rows[f"{version}, full attention"] = {
                label: cell(found, CEILING.get(label, "")) for label in COLUMNS
            }
    return pd.DataFrame.from_dict(rows, "index")


def versus(metrics: Metrics, rows: dict[str, str]) -> pd.DataFrame:
    """v1 | v2 | change: every version after the first is followed by its change from the first."""
    found = {version: figures(tree) for version, tree in metrics.items()}
    rows = {name: key for name, key in rows.items() if any(key in f for f in found.values())}
    columns: dict[str, list[str]] = {}
    first = next(iter(found))
    for version, ours in found.items():
        columns[version] = [cell(ours, key) for key in rows.values()]
        if version != first:
            label = "change" if len(found) == 2 else f"{version} vs {first}"
            columns[label] = [change(found[first].get(key), ours.get(key)) for key in rows.values()]
    return pd.DataFrame(columns, index=list(rows))


def group(metrics: Metrics, name: str) -> pd.DataFrame:
    """One block of the metrics: a row a figure, a column a version that has it."""
    columns = {v: figures({name: tree[name]}) for v, tree in metrics.items() if name in tree}
    keys = list(dict.fromkeys(key for found in columns.values() for key in found))
    labels = [key.removeprefix(f"{name}.") for key in keys]
    cells = {v: [cell(found, key) for key in keys] for v, found in columns.items()}
    return pd.DataFrame(cells, index=labels)


def retrieval(metrics: Metrics) -> pd.DataFrame:
    """Passkey: a row a version."""
    rows = {}
    for version, tree in metrics.items():
        found = figures({"passkey": tree["passkey"]})
        rows[version] = {label: cell(found, f"passkey.{key}") for label, key in PASSKEY.items()}
    return pd.DataFrame.from_dict(rows, "index")


def by(losses: dict[str, pd.DataFrame], key: str) -> pd.DataFrame:
    """Perplexity by `segment` or `distance`: a row each, a column a version, errors over texts."""
    columns = {}
    for version, table in losses.items():
        for protocol, name in (("segmented", version), ("sliding", f"{version}, full attention")):
            if len(part := table[table["protocol"] == protocol]):
                rows = curve(part, key)
                pairs = zip(rows["ppl"], rows["ppl_se"], strict=True)
                columns[name] = pd.Series([show(*pair) for pair in pairs], rows.index)
    return pd.DataFrame(columns).rename(index=str)


def settings(versions: dict[str, Replacement | Adapter]) -> tuple[pd.DataFrame, frozenset[str]]:
    """A row a setting, and those that differ. An adapter's training stands beside finetuning."""
    columns = {}
    for version, recipe in versions.items():
        content = recipe.model_dump()
        if isinstance(recipe, Adapter):
            own = {name: content.pop(name) for name in ("layer", "alpha")}
            content = own | {"finetune": content}
        columns[version] = {
            f"{block}.{name}" if name else block: value
            for block, inner in content.items()
            for name, value in (inner.items() if isinstance(inner, dict) else [("", inner)])
        }
    table = pd.DataFrame(columns, dtype=object)
    shown = table.apply(lambda column: column.map(setting))
    for version, column in columns.items():
        shown.loc[~shown.index.isin(column), version] = "–"
    differ = [k for k, row in shown.iterrows() if len(set(row) - {"–"}) > 1]
    return shown, frozenset(map(str, differ))


def setting(value: Any) -> str:
    """A setting as it is printed."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None or value != value:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def double_shift(metrics: Metrics, replacements: list[str]) -> pd.DataFrame:
    """The same models by the next token and by the seed's loop, on the same documents."""
    found = {version: figures(tree) for version, tree in metrics.items()}
    steps = {"untouched base": ("base", "double_shift.next_token_ppl", "double_shift.ppl")}
    for version in replacements:
        steps[f"{version} distilled"] = (
            version,
            "finetune.double_shift_next_before",
            "finetune.double_shift_before",
        )
        steps[f"{version} finetuned"] = (version, *steps["untouched base"][1:])
    rows = {
        label: {
            "next token": cell(found[version], after),
            "token after next (the seed's loop)": cell(found[version], shifted),
        }
        for label, (version, after, shifted) in steps.items()
    }
    return pd.DataFrame.from_dict(rows, "index")


def audits(found: dict[str, dict[str, Any]], asked: dict[str, Audit]) -> pd.DataFrame:
    """A row an audit: both scores before and after the documents, and against the version."""
    rows = {}
    for name, tree in found.items():
        f = figures(tree)
        rows[asked[name].question] = {
            "version": asked[name].of,
            "next token, before": cell(f, "before.segmented.ppl"),
            "after": cell(f, "after.segmented.ppl"),
            "after, memory kept empty": cell(f, "after.memory_off.ppl"),
            "token after next, before": cell(f, "before.double_shift.ppl"),
            "after ": cell(f, "after.double_shift.ppl"),
            "nats above the version": cell(f, "vs_version.nats"),
        }
    return pd.DataFrame.from_dict(rows, "index")


def times(taken: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A row a stage: seconds of work, of imports before it, of an epoch."""
    rows = {
        name: {
            "seconds": f"{time['seconds']:.1f}",
            "imports": f"{time['startup']:.1f}",
            "an epoch": f"{time['seconds_per_epoch']:.2f}" if "seconds_per_epoch" in time else "–",
        }
        for name, time in taken.items()
    }
    rows["sum"] = {
        "seconds": f"{sum(time['seconds'] for time in taken.values()):.1f}",
        "imports": f"{sum(time['startup'] for time in taken.values()):.1f}",
        "an epoch": "–",
    }
    return pd.DataFrame.from_dict(rows, "index")


def prepared(counts: dict[str, dict[str, int]]) -> pd.DataFrame:
    """A row a split."""
    table = pd.DataFrame.from_dict(counts, "index")
    return table.map(lambda value: "–" if value != value else f"{int(value):,}")


def listed(pairs: dict[str, str]) -> pd.DataFrame:
    """Labels and texts."""
    return pd.DataFrame({"": pairs})


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """A row a length, a column a version and figure."""
    names = {"state_bytes": "bytes", "tokens_per_second": "tokens/s", "peak_mib": "peak MiB"}
    wide = table.pivot(index="length", columns="version", values=list(names))
    order = [(name, version) for name in names for version in table["version"].unique()]
    wide = wide[order]
    wide.columns = pd.Index([f"{version}, {names[name]}" for name, version in order])
    return wide.map(lambda value: f"{value:,.0f}").rename(index=lambda length: f"{length:,}")
