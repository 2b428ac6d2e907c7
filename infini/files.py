"""Read and write JSON, YAML and tables; flatten nested dictionaries.

`import infini` needs this module: pandas and ruamel.yaml are imported where they are used.
"""

import json
import os
from pathlib import Path
from typing import Any

from infini.errors import InputError

NOT_NUMERIC = ("text_id", "tokens", "protocol", "version", "curve", "series", "split")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically.

    Args:
        file: Path of the file; missing folders are created.
        content: What to write.

    Raises:
        InputError: If a number is not finite; nothing is written.
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InputError(f"{file}: a figure is not finite, nothing is written") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def read_json(file: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        file: Path of the file.
        keys: Keys that the object must have.

    Returns:
        The object.

    Raises:
        InputError: If the file is missing, is no JSON object, or lacks one of `keys`.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: not found; run the stage that writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: must hold a JSON object, got a {type(content).__name__}")
    if missing := [key for key in keys if key not in content]:
        raise InputError(f"{file}: no {', '.join(missing)} in it; run the stage that writes it")
    return content


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file; a missing or empty one is an empty dictionary."""
    from ruamel.yaml import YAML

    return (YAML(typ="safe").load(file) or {}) if file.is_file() else {}


def read_table(file: Path, *columns: str) -> Any:
    """Read a Parquet or CSV file.

    Args:
        file: Path of the file; its suffix decides the format.
        columns: Columns that the table must have, of finite numbers but for `NOT_NUMERIC`.

    Returns:
        The pandas DataFrame, all its columns.

    Raises:
        InputError: If the file is missing or unreadable, or one of `columns` is missing or has
            other values.
    """
    import pandas as pd

    try:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file, page_checksum_verification=True)
        else:
            table = read_csv(file)
    except FileNotFoundError:
        raise InputError(f"{file}: not found; run the stage that writes it") from None
    except Exception as error:  # a damaged file raises errors of many types
        raise InputError(f"{file}: no readable table ({' '.join(str(error).split())})") from None
    if missing := [name for name in columns if name not in table]:
        raise InputError(f"{file}: no column {', '.join(missing)}; run the stage that writes it")
    for name in columns:
        if name not in NOT_NUMERIC and not _is_finite(table[name]):
            raise InputError(f"{file}: {name} has values that are not finite numbers")
    return table


def read_csv(source: Any) -> Any:
    """Read CSV into a pandas DataFrame; only an empty cell is missing, `nan` may be a name."""
    import pandas as pd

    return pd.read_csv(source, keep_default_na=False, na_values=[""])


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_finite(column: Any) -> bool:
    """Return whether a pandas column is empty or holds finite numbers only."""
    if column.empty:
        return True
    return column.dtype.kind in "iufb" and bool((column.abs() < float("inf")).all())
