"""Command `evaluate`: a model beside its base on text files, as a Markdown table."""

from argparse import Namespace
from pathlib import Path

import pandas as pd

from infini.cli.long_text import read_text
from infini.corpus.inputs import visible_files
from infini.errors import InputError
from infini.evaluation.estimates import Estimate
from infini.evaluation.evaluate_texts import evaluate
from infini.report.cells import show, show_number

TITLES = {"nats": "nats per token", "ppl": "perplexity", "gain": "gain over the window"}


def run_evaluate(arguments: Namespace) -> None:
    """Print how many texts were scored, and the table of `infini.evaluate`.

    Args:
        arguments: options of the command, see `python -m infini evaluate --help`.

    Raises:
        InputError: a file, a model or an option is invalid.
    """
    texts = {str(file): read_text(file) for file in txt_files(arguments.file)}
    try:
        table = evaluate(
            arguments.model,
            texts,
            base=arguments.base,
            window=arguments.window,
            sinks=arguments.sinks,
        )
    except InputError as error:
        message = str(error).removeprefix("base.model: ")
        raise InputError(message.replace("base=FOLDER", "--base FOLDER")) from None
    print(as_markdown(table, arguments.model, arguments.sinks))


def as_markdown(table: pd.DataFrame, model: str, sinks: int) -> str:
    """Return a table of `infini.evaluate` as Markdown, under a line on what was scored.

    Args:
        table: The table.
        model: Name of the model in it.
        sinks: Sinks of the base's window.
    """
    figures = {name: title for name, title in TITLES.items() if table[name].notna().any()}
    titles = {"model": model, "full": "base, full attention"}
    rows = [
        [
            titles.get(reader, f"base, window of {row['window']:,} and {sinks} sinks"),
            show_number(int(row["state_bytes"])),
            *(show(_estimate(row, name)) for name in figures),
        ]
        for reader, row in table.iterrows()
    ]
    texts, tokens = int(table["texts"].iloc[0]), int(table["tokens"].iloc[0])
    scored = f"{texts} {'text' if texts == 1 else 'texts'}, {tokens:,} tokens scored"
    if texts > 1:
        scored += "; ± is one standard error over texts, ~ marks gains within two of zero"
    headers = ["", "state bytes", *figures.values()]
    alignment = ["left", *["right"] * (len(headers) - 1)]
    markdown = pd.DataFrame(rows, columns=headers).to_markdown(
        index=False, disable_numparse=True, colalign=alignment
    )
    return f"{scored}.\n\n{markdown}"


def _estimate(row: "pd.Series[float]", figure: str) -> Estimate:
    """Return a figure of a row with its error, where it is known."""
    error = row[f"{figure}_se"]
    if pd.isna(error):
        return Estimate(row[figure])
    return Estimate(row[figure], error, difference=figure == "gain")


def txt_files(paths: list[Path]) -> list[Path]:
    """Return the files, and the .txt files in folders, each once."""
    unique: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            files = [file for file in visible_files(path) if file.suffix.lower() == ".txt"]
            if not files:
                raise InputError(f"{path}: the folder has no .txt file")
        elif path.is_file():
            files = [path]
        else:
            raise InputError(f"{path}: no such file")
        for file in files:
            unique.setdefault(file.resolve(), file)
    return list(unique.values())
