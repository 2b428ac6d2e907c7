"""The pipeline files list exactly what each stage's code imports and reads."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = ("dvc.yaml", "audits/dvc.yaml")
STAGES = {
    name: stage
    for file in FILES
    for name, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items()
}


def module_file(name: str) -> Path | None:
    """The file of a module of ours."""
    path = ROOT.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def imported_files(file: Path, seen: set[Path]) -> set[Path]:
    """The file and every file of ours that it imports, directly or not."""
    if file in seen:
        return seen
    seen.add(file)
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ("infini", "stages") and (found := module_file(name)):
                imported_files(found, seen)
    return seen


def keys_read(file: Path) -> set[str]:
    """The keys handed to params.read, with `${key}` for the version's name."""
    keys: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "params.read":
            for argument in node.args:
                text = ast.unparse(argument)
                keys.add(re.sub(r"\{(version|name)\}", "${key}", text.lstrip("f").strip("'\"")))
    return keys


def body(stage: dict) -> dict:
    return stage["do"] if "foreach" in stage else stage


def script(stage: dict) -> Path:
    module = body(stage)["cmd"].split()[2]
    file = module_file(module)
    assert file, f"no script for {module}"
    return file


@pytest.mark.parametrize("name", STAGES)
def test_stage_is_named_after_its_script(name: str) -> None:
    assert name.startswith(script(STAGES[name]).stem)


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_imports(name: str) -> None:
    code = {dep for dep in body(STAGES[name])["deps"] if dep.endswith((".py", ".j2"))}
    files = imported_files(script(STAGES[name]), set())
    for template in (ROOT / "infini/templates").iterdir():
        if any(f'"{template.name}"' in file.read_text() for file in files):
            files.add(template)
    assert code == {str(file.relative_to(ROOT)) for file in files}


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_keys_read(name: str) -> None:
    assert set(body(STAGES[name])["params"]) == keys_read(script(STAGES[name]))
