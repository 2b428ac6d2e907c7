"""Print public names of `infini` that are defined twice, and docstrings without a subject.

`python tests/check_names.py`; `tests/test_names.py` runs the same check.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A protocol that several modules implement.
SHARED = {"FORMAT"}
# A docstring that begins like this has no subject, or no verb.
NO_SUBJECT = (
    "Of", "As", "That", "Those", "By", "It", "Its", "What", "Which", "Who", "Whose", "Whatever",
    "Whoever", "Where", "With", "Without", "From", "In", "Into", "On", "And", "Also", "Else",
    "Within", "Behind", "Before", "After", "Beside", "Between",
)  # fmt: skip


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """Yield every module of the package and its syntax tree."""
    for file in sorted((ROOT / "infini").rglob("*.py")):
        yield file.relative_to(ROOT), ast.parse(file.read_text())


def duplicate_names() -> dict[str, list[str]]:
    """Return public module-level names that more than one module defines."""
    found = defaultdict(list)
    for file, tree in modules():
        for node in tree.body:
            names: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                if not name.startswith("_") and name not in SHARED and name != "log":
                    found[name].append(str(file))
    return {name: files for name, files in found.items() if len(files) > 1}


def unclear_docstrings() -> list[str]:
    """Return the docstrings that begin without a subject or have fewer than three words."""
    found = []
    for file, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                continue
            words = (ast.get_docstring(node) or "a b c").split()
            if words[0].strip(",.:;") in NO_SUBJECT or len(words) < 3:
                line = getattr(node, "lineno", 1)
                found.append(f"{file}:{line}: {' '.join(words[:10])}")
    return found


if __name__ == "__main__":
    for name, files in duplicate_names().items():
        print(f"{name} is defined in {', '.join(files)}")
    print(*unclear_docstrings(), sep="\n")
