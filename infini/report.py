"""The comparison report: pure functions of the metrics files and params.

A version named in params.yaml becomes a column of every table, and a line of every plot.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from infini.params import Adapter, Replacement

TEMPLATES = Path(__file__).parent / "templates"

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
}
# The protocols, as every version is compared by them with the untouched base.
PROTOCOL_ROWS = {
    "Short samples, PPL": "short.ppl",
    "Long documents by segments, PPL": "segmented.ppl",
    "– the same, memory kept empty": "memory_off.ppl",
    "– the same, bits per byte": "segmented.bits_per_byte",
    "Full attention over a sliding window, PPL": "sliding.ppl",
    "Token after next (the seed's loop), PPL": "double_shift.ppl",
}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def metrics_table(metrics: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Rows: every metric; columns: versions, in the given order."""
    columns = {version: pd.Series(flatten(tree), dtype=object) for version, tree in metrics.items()}
    order = dict.fromkeys(key for column in columns.values() for key in column.index)
    return pd.DataFrame(columns).reindex(list(order))


def settings_table(versions: dict[str, Replacement | Adapter]) -> pd.DataFrame:
    """Rows: every setting; columns: versions. An adapter's training stands beside finetuning."""
    columns = {}
    for version, recipe in versions.items():
        settings = recipe.model_dump()
        if isinstance(recipe, Adapter):
            own = {name: settings.pop(name) for name in ("layer", "alpha")}
            settings = own | {"finetune": settings}
        columns[version] = flatten(settings)
    return pd.DataFrame(columns, dtype=object)


def show(value: Any) -> str:
    """A table cell: six significant digits at most, a dash for what does not exist."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4f}" if 0.01 <= abs(value) < 100 else f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def change(first: Any, last: Any) -> str:
    """What became of a figure: a difference for counts, per cent for the rest."""
    if any(value is None or pd.isna(value) for value in (first, last)):
        return "–"
    if isinstance(first, int) and isinstance(last, int):
        return f"{last - first:+,}"
    return f"{100 * (last / first - 1):+.1f} %" if first > 0 else f"{last - first:+.4g}"


def markdown(table: pd.DataFrame, corner: str) -> str:
    """A Markdown table of already printable cells."""
    return table.rename_axis(corner).to_markdown(disable_numparse=True)


def select(table: pd.DataFrame, rows: dict[str, str]) -> pd.DataFrame:
    """The named rows under their labels, those that any version has."""
    chosen = table.reindex(rows.values())
    chosen.index = pd.Index(rows.keys())
    return chosen.dropna(how="all").astype(object)


def versus(table: pd.DataFrame) -> pd.DataFrame:
    """v1 | v2 | change: every version after the first is followed by its change from the first."""
    columns: dict[str, Iterable[str]] = {}
    first = table.columns[0]
    for version in table.columns:
        columns[version] = [show(value) for value in table[version]]
        if version != first:
            label = "change" if len(table.columns) == 2 else f"{version} vs {first}"
            columns[label] = [
                change(*pair) for pair in zip(table[first], table[version], strict=True)
            ]
    return pd.DataFrame(columns, index=table.index)


def curves_table(
    curves: dict[str, pd.DataFrame], summaries: dict[str, dict[str, Any]]
) -> pd.DataFrame:
    """All versions' loss curves, long: version, epoch, split, loss, event (best, stopped)."""
    parts = [pd.DataFrame(columns=["version", "epoch", "split", "loss", "event"])]
    for version, curve in curves.items():
        rows = curve.melt("epoch", var_name="split", value_name="loss").dropna(subset="loss")
        rows["split"] = rows["split"].str.removesuffix("_loss")
        rows.insert(0, "version", version)
        rows["event"] = ""
        summary = summaries[version]
        if summary["stopped_early"]:
            rows.loc[rows["epoch"] == summary["epochs"], "event"] = "stopped"
        rows.loc[rows["epoch"] == summary["best_epoch"], "event"] = "best"
        parts.append(rows)
    return pd.concat([part for part in parts if len(part)] or parts)


def findings(table: pd.DataFrame) -> list[str]:
    """What the numbers say of every version's memory, in sentences."""
    base, ceiling = table.loc["segmented.ppl", "base"], table.loc["sliding.ppl", "base"]
    sentences = [
        f"The untouched base has perplexity {base:.2f} by segments and {ceiling:.2f} with full "
        f"attention: {100 * (1 - ceiling / base):.1f} % is what a memory could win."
    ]
    for version in table.columns.drop("base"):
        ours, empty = table.loc["segmented.ppl", version], table.loc["memory_off.ppl", version]
        recovered = math.log(base / ours) / math.log(base / ceiling)
        sentences.append(
            f"**{version}**: {ours:.2f}, {abs(100 * (ours / base - 1)):.1f} % "
            f"{'above' if ours > base else 'below'} the base by segments. Its memory "
            f"{'lowers' if ours < empty else 'raises'} perplexity by "
            f"{abs(100 * (ours / empty - 1)):.2f} % (memory kept empty: {empty:.2f}). "
            f"Context recovery {100 * recovered:.0f} %."
        )
    return sentences


def times_table(times: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Rows: stages; columns: seconds of work, of imports before it, of an epoch."""
    rows = {
        name: {
            "seconds": f"{time['seconds']:.1f}",
            "imports": f"{time['startup']:.1f}",
            "an epoch": time.get("seconds_per_epoch"),
        }
        for name, time in times.items()
    }
    rows["sum"] = {
        column: f"{sum(time[key] for time in times.values()):.1f}"
        for column, key in (("seconds", "seconds"), ("imports", "startup"))
    }
    return pd.DataFrame.from_dict(rows, "index", dtype=object)


def compare_page(
    table: pd.DataFrame,
    versions: dict[str, Replacement | Adapter],
    replacements: list[str],
    *,
    prepared: dict[str, dict[str, int]],
    times: dict[str, dict[str, Any]],
    **context: Any,
) -> str:
    """The report in Markdown."""

    def group(name: str) -> str:
        rows = table[table.index.str.startswith(f"{name}.")]
        rows = rows.rename(index=lambda key: key.removeprefix(f"{name}."))
        return markdown(rows.dropna(axis="columns", how="all").map(show), name)

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("compare.md.j2").render(
        protocols=markdown(select(table, PROTOCOL_ROWS).map(show), "test text"),
        findings=findings(table),
        distillation=group("distill"),
        finetuning=group("finetune"),
        replacements=replacements,
        versus=markdown(versus(select(table[replacements], SEED_ROWS)), "metric"),
        settings=markdown(settings_table(versions).map(show), "setting"),
        prepared=markdown(pd.DataFrame(prepared).map(show), "split"),
        times=markdown(times_table(times).map(show), "stage"),
        **context,
    )
