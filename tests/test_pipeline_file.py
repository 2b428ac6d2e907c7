"""dvc.yaml lists what can change a stage's figures: its code by folder or file, its params.

The rule: every module that a stage's script imports, directly or not, must lie under one of
its deps, and every dep of code must be imported. Nobody's deps: what a person sees of a run,
paths, errors, what params.yaml may hold as a whole, and packages' lists of their names.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = (
    "dvc.yaml",
    "base/dvc.yaml",
    "audits/dvc.yaml",
    "studies/smollm2/base/dvc.yaml",
)
STAGES = {
    name: stage.get("do", stage)
    for file in FILES
    for name, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items()
}
CHANGES_NO_FIGURE = {
    f"infini/{name}"
    for name in ("console", "choices", "errors", "files", "params", "paths", "schema")
}


def script(name: str) -> Path:
    """The stage's own: `python -m stages.x`."""
    return Path(STAGES[name]["cmd"].split()[2].replace(".", "/")).with_suffix(".py")


def is_neutral(file: Path) -> bool:
    top = Path(*file.parts[:2])
    return file.name == "__init__.py" or str(top.with_suffix("")) in CHANGES_NO_FIGURE


def module_files(name: str) -> set[Path]:
    """The file of a module of ours, or of a name in it."""
    path = Path(name.replace(".", "/"))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return {file for file in files if (ROOT / file).is_file()}


@cache
def imports(file: Path) -> set[Path]:
    """What a file imports of ours, wherever in it."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ("infini", "stages"):
                found |= module_files(name)
    return found


def code_of(name: str) -> set[Path]:
    """Every file of ours that can change a stage's figures."""
    found, new = set(), {script(name), *schemas(script(name))}
    while new:
        found |= new
        new = {file for one in new if is_followed(one) for file in imports(one)} - found
    return {file for file in found if not is_neutral(file)}


def is_followed(file: Path) -> bool:
    """Not infini's own names, which are imported when they are used; not what params.py knows."""
    return file != Path("infini/__init__.py") and (
        file.name == "__init__.py" or not is_neutral(file)
    )


@cache
def helpers() -> dict[str, ast.FunctionDef]:
    """The functions of infini/params.py that read for a script, by how it calls them."""
    body = ast.parse((ROOT / "infini/params.py").read_text()).body
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    return {f"params.{node.name}": node for node in functions if node.name != "get"}


def called_helpers(file: Path) -> list[ast.FunctionDef]:
    tree = ast.parse((ROOT / file).read_text())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return [node for name, node in helpers().items() if name in called]


def schemas(file: Path) -> set[Path]:
    """The schemas of what a script is handed by those functions."""
    names = {
        n.id for node in called_helpers(file) for n in ast.walk(node) if isinstance(n, ast.Name)
    }
    body = ast.parse((ROOT / "infini/params.py").read_text()).body
    return {
        found
        for node in body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.endswith(".config")
        if names & {alias.name for alias in node.names}
        for found in module_files(node.module)
    }


def covers(dep: str, file: Path) -> bool:
    return file.is_relative_to(dep)


@pytest.mark.parametrize("name", STAGES)
def test_stage_is_named_after_its_script(name: str) -> None:
    assert (ROOT / script(name)).is_file()
    assert name.startswith(script(name).stem)


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_what_can_change_the_figures(name: str) -> None:
    deps = {dep for dep in STAGES[name]["deps"] if dep.startswith(("infini", "stages"))}
    files = code_of(name)
    uncovered = {str(file) for file in files if not any(covers(dep, file) for dep in deps)}
    assert not uncovered
    assert not {dep for dep in deps if not any(covers(dep, file) for file in files)}


CHANGES = {
    # a change in … → the stages that run again, pretrain_base (frozen) left out
    "infini/console/live.py": set(),
    "infini/paths.py": set(),
    "infini/errors.py": set(),
    "infini/params.py": set(),
    "infini/report/tables.py": {"compare_report", "table"},
    "infini/training/loop.py": {
        "distill_layer0", "finetune_long_context", "adapter_parallel", "adapter_parallel_control",
        "audit",
    },
    "infini/evaluation/estimates.py": {
        "evaluate_ppl_base", "evaluate_ppl_replacement", "evaluate_ppl_adapter",
        "compare_report", "table", "audit",
    },
    "infini/training/distillation.py": {"distill_layer0", "audit"},
}  # fmt: skip


@pytest.mark.parametrize("changed", CHANGES)
def test_a_change_runs_again_only_what_it_can_change(changed: str) -> None:
    assert (ROOT / changed).is_file()
    again = {
        name
        for name, stage in STAGES.items()
        if any(covers(dep, Path(changed)) for dep in stage["deps"]) and not stage.get("frozen")
    }
    assert again == CHANGES[changed]


READS = {f"{module}{name}" for module in ("", "params.") for name in ("get", "get_optional")}


def keys_of(tree: ast.AST) -> set[str]:
    """The keys handed to a function of `READS`, with `${key}` for the version's name."""
    keys: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in READS:
            text = ast.unparse(node.args[0])
            keys.add(re.sub(r"\{(version|name)\}", "${key}", text.lstrip("f").strip("'\"")))
    return keys


def keys_read(file: Path) -> set[str]:
    """By a script, and by the functions of infini/params.py that it calls."""
    own = keys_of(ast.parse((ROOT / file).read_text()))
    return own.union(*(keys_of(node) for node in called_helpers(file)))


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_keys_read(name: str) -> None:
    assert set(STAGES[name].get("params", [])) == keys_read(script(name))


def test_the_file_stays_short() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 220
