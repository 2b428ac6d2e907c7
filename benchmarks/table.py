"""Tables of benchmark results in benchmarks/README.md, each between its two markers."""

import platform
import re
from pathlib import Path

import pandas as pd
import torch

README = Path(__file__).with_name("README.md")


def write(name: str, table: pd.DataFrame, notes: str = "") -> None:
    """Print the table, and write it to the README in place of the last one."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    machine = f"{device}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}"
    text = f"{table.to_markdown(index=False)}\n\n{notes}\n\nMeasured on {machine}."
    print(text)
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    content = re.sub(pattern, rf"\g<1>{text}\n\g<2>", README.read_text(), flags=re.S)
    README.write_text(content)
