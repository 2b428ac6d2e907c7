"""Command `bench`: retention policies at equal state bytes on a user's own model and texts."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from infini.cli.evaluate import txt_files
from infini.cli.long_text import read_text
from infini.errors import InputError
from infini.evaluation.bench_policies import bench
from infini.evaluation.byte_budget import show_bytes
from infini.evaluation.estimates import Estimate
from infini.memory.eviction import policy_by_name
from infini.report.bench_plot import bench_plot
from infini.report.cells import MISSING, show, show_estimate, show_number

HEADERS = {
    "budget": "budget",
    "policy": "policy",
    "state_bytes": "state bytes",
    "window": "window",
    "retained": "retained",
    "nats": "nats per token",
    "gain": "gain over the window",
    "tokens_per_second": "tokens/s",
    "peak_mib": "peak MiB",
}
TABLE, PLOT = "bench.csv", "bench.svg"


def run_bench(arguments: Namespace) -> None:
    """Print the table of `infini.bench`, which policy to take, and the calls that make its model.

    The table and a plot are written too.

    Args:
        arguments: options of the command, see `python -m infini bench --help`.

    Raises:
        InputError: a file, a model or an option is invalid.
    """
    out: Path = arguments.out
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: must be a folder")
    out.mkdir(parents=True, exist_ok=True)  # not found out after minutes
    try:
        table = bench(
            arguments.model,
            _read(arguments.text),
            arguments.bytes.split(","),
            policies=_names(arguments.policies),
            saved=arguments.saved,
            window=arguments.window,
            sinks=arguments.sinks,
            max_tokens=arguments.max_tokens,
            fit_texts=_read(arguments.fit_text) or None,
        )
    except InputError as error:
        message = str(error).removeprefix("base.model: ")
        raise InputError(message.replace("state_bytes must", "--bytes must")) from None
    table.to_csv(out / TABLE, index=False)
    saved = [str(Path(folder).expanduser()) for folder in arguments.saved]
    bench_plot(table, saved).savefig(out / PLOT, metadata={"Date": None})
    print(bench_markdown(table))
    print(f"\n{out / TABLE}, {out / PLOT}\n{recommendation(table)}")
    for budget, rows in best_first(table):
        print(f"{show_bytes(budget)}: {model_call(rows.iloc[0], arguments.sinks, saved)}")


def bench_markdown(table: pd.DataFrame) -> str:
    """Return a table of `infini.bench` as Markdown, under a line on what was scored.

    Args:
        table: The table.
    """
    texts, tokens = int(table["texts"].iloc[0]), int(table["tokens"].iloc[0])
    scored = f"{texts} {'text' if texts == 1 else 'texts'}, {tokens:,} tokens scored"
    if texts > 1:
        scored += "; ± is one standard error over texts, ~ marks gains within two of zero"
    rows = [[_cell(row, name) for name in HEADERS] for _, row in table.iterrows()]
    alignment = ["right" if name != "policy" else "left" for name in HEADERS]
    markdown = pd.DataFrame(rows, columns=list(HEADERS.values())).to_markdown(
        index=False, disable_numparse=True, colalign=alignment
    )
    return f"{scored}.\n\n{markdown}"


def recommendation(table: pd.DataFrame) -> str:
    """Say in one line which row of each budget to take, and by how much it leads.

    Args:
        table: What `infini.bench` returned.
    """
    parts = []
    for budget, order in best_first(table):
        best = f"{order['policy'].iloc[0]} for {show_bytes(budget)}"
        if len(order) == 1:
            parts.append(f"{best} (nothing else fits)")
            continue
        lead = _estimate(order.iloc[1], "behind")
        doubt = ", within two standard errors" if lead.is_noise else ""
        if lead.error is None:
            doubt = "; one text gives no standard error"
        parts.append(
            f"{best} ({show_estimate(lead)} nats ahead of {order['policy'].iloc[1]}{doubt})"
        )
    return f"take {'; '.join(parts)}"


def best_first(table: pd.DataFrame) -> list[tuple[int, pd.DataFrame]]:
    """Return each budget of a table of `infini.bench` with its rows, the best first."""
    by_budget = table[table["budget"].notna()].groupby("budget")
    return [(int(budget), rows.sort_values("behind", kind="stable")) for budget, rows in by_budget]


def model_call(row: "pd.Series[Any]", sinks: int, saved: Sequence[str] = ()) -> str:
    """Return the Python code that makes the model of a row.

    Args:
        row: A row of a table of `infini.bench`, but not that of full attention.
        sinks: First tokens that are always attended to.
        saved: Rows of saved models, by their name.
    """
    name = str(row["policy"])
    if name in saved:
        return f'infini.load("{name}")'
    options = f"window={int(row['window'])}, sinks={sinks}"
    if name == "window":
        return f'infini.retrofit(model, "window", layers=[], {options})'
    options += f', retained={int(row["retained"])}, policy="{name}", update="none"'
    fit = "; infini.fit_policy(model, fit_texts)" if policy_by_name(name).needs_fit else ""
    return f'infini.retrofit(model, "window", {options}){fit}'


def _cell(row: "pd.Series[float]", name: str) -> str:
    value = row[name]
    if pd.isna(value):
        return MISSING
    if name == "policy":
        return str(value)
    if name == "budget":
        return show_bytes(int(value))
    if name in ("nats", "gain"):
        estimate = _estimate(row, name)
        return show_estimate(estimate) if estimate.error is None else show(estimate)
    return show_number(round(value))


def _estimate(row: "pd.Series[float]", name: str) -> Estimate:
    error = row[f"{name}_se"]
    error = None if pd.isna(error) else float(error)
    return Estimate(float(row[name]), error, difference=name != "nats")


def _names(policies: str | None) -> str | list[str] | None:
    return policies if policies in (None, "all") else policies.split(",")


def _read(paths: list[Path]) -> dict[str, str]:
    """Return the texts of files and folders by file."""
    return {str(file): read_text(file) for file in txt_files(paths)}
