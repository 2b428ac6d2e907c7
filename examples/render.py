"""Runs an example and writes it with its output as a page: `python examples/render.py`.

An example is a Python file with cells that begin with `# %%` (code) or `# %% [markdown]` (text in
comments), as VS Code and Jupyter read them.
"""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/quickstart.py"
PAGE = ROOT / "docs/quickstart.md"


def render(example: Path) -> str:
    """Run the example's cells in order and return text, code and printed output as Markdown."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    parts = []
    for cell in re.split(r"^# %%", example.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        kind, _, content = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", content.strip(), flags=re.MULTILINE))
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(content, str(example), "exec"), namespace)
        parts.append(f"```python\n{content.strip()}\n```")
        if printed.getvalue():
            parts.append(f"```text\n{printed.getvalue().rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(EXAMPLE), encoding="utf-8")
