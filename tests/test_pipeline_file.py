"""The DVC files list what can change a stage's figures: its code by folder or file, its params.

Every module that a stage's script imports, directly or not, must lie under one of its deps, and
every dep of code must be imported. No deps: infini/console, paths, files, errors and params, and
packages' `__init__.py`.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

CODE = ("audits", "infini", "stages")
STAGES: dict[str, dict[str, Any]] = {
    name: stage.get("do", stage)
    for file in ("dvc.yaml", "base/dvc.yaml", "audits/dvc.yaml", "reports/dvc.yaml")
    for name, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items()
}
CHANGES_NO_FIGURE = {
    f"infini/{name}" for name in ("console", "errors", "files", "params", "paths", "schema")
}
GETTERS = ("params.get", "params.get_optional", "get", "get_optional")


def script(stage: str) -> Path:
    """Return the file that `python -m stages.x` runs."""
    return Path(STAGES[stage]["cmd"].split()[2].replace(".", "/")).with_suffix(".py")


def changes_no_figure(file: Path) -> bool:
    top = Path(*file.parts[:2])
    return file.name == "__init__.py" or str(top.with_suffix("")) in CHANGES_NO_FIGURE


def module_files(name: str) -> set[Path]:
    """Return the file of a module of ours, or of a name in it."""
    path = Path(name.replace(".", "/"))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return {file for file in files if (ROOT / file).is_file()}


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


@cache
def imports(file: Path) -> set[Path]:
    """Return the files of ours that a file imports, anywhere in it."""
    found: set[Path] = set()
    for node in ast.walk(parsed(file)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in CODE:
                found |= module_files(name)
    return found


def follows_imports(file: Path) -> bool:
    """infini/__init__.py imports a name when it is used; params.py composes every section."""
    return file != Path("infini/__init__.py") and (
        file.name == "__init__.py" or not changes_no_figure(file)
    )


def code_of(stage: str) -> set[Path]:
    """Return every file of ours that can change a stage's figures."""
    found: set[Path] = set()
    new = {script(stage), *sections(script(stage))}
    while new:
        found |= new
        new = {file for one in new if follows_imports(one) for file in imports(one)} - found
    return {file for file in found if not changes_no_figure(file)}


def called_functions(file: Path) -> list[ast.FunctionDef]:
    """Return the functions of infini/params.py, but its getters, that a script calls."""
    calls = [node for node in ast.walk(parsed(file)) if isinstance(node, ast.Call)]
    called = {ast.unparse(node.func) for node in calls} - set(GETTERS)
    functions = [n for n in parsed(Path("infini/params.py")).body if isinstance(n, ast.FunctionDef)]
    return [function for function in functions if f"params.{function.name}" in called]


def sections(file: Path) -> set[Path]:
    """Return the config.py files of what a script gets by those functions."""
    nodes = [node for function in called_functions(file) for node in ast.walk(function)]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return {
        found
        for node in parsed(Path("infini/params.py")).body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.endswith(".config")
        if names & {alias.name for alias in node.names}
        for found in module_files(node.module)
    }


def keys_in(tree: ast.AST) -> set[str]:
    """Return the keys of params.yaml that code gets, with `${key}` for a version's name."""
    keys: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in GETTERS:
            text = ast.unparse(node.args[0])
            keys.add(re.sub(r"\{(version|name)\}", "${key}", text.lstrip("f").strip("'\"")))
    return keys


@pytest.mark.parametrize("stage", STAGES)
def test_stage_is_named_after_its_script(stage: str) -> None:
    assert (ROOT / script(stage)).is_file()
    assert stage.startswith(script(stage).stem)


@pytest.mark.parametrize("stage", STAGES)
def test_deps_cover_imports(stage: str) -> None:
    deps = {dep for dep in STAGES[stage]["deps"] if dep.startswith(CODE) and dep.count("/")}
    deps -= {"audits/results"}
    files = code_of(stage)
    assert not {str(f) for f in files if not any(f.is_relative_to(dep) for dep in deps)}
    assert not {dep for dep in deps if not any(f.is_relative_to(dep) for f in files)}


# one takes seconds, the other is frozen
NOT_RUN_CACHED = {"prepare_data", "pretrain_base"}
STAGES_OF_TRAINING = {
    "distill_layer0", "finetune_long_context", "adapter_parallel", "adapter_parallel_control",
    "audit",
}  # fmt: skip
STAGES_OF_EVALUATION = {
    "evaluate_ppl_base", "evaluate_ppl_replacement", "evaluate_ppl_adapter", "audit",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "run_again"),
    [
        ("infini/console/live.py", set()),
        ("infini/paths.py", set()),
        ("infini/errors.py", set()),
        ("infini/params.py", set()),
        ("infini/choices.py", STAGES.keys() - {"pretrain_base"}),  # which is frozen
        ("infini/report/tables.py", {"compare_report", "table"}),
        ("infini/training/loop.py", STAGES_OF_TRAINING),
        ("infini/training/distillation.py", {"distill_layer0", "audit"}),
        ("infini/evaluation/protocols.py", STAGES_OF_EVALUATION),
    ],
)
def test_deps_run_again_only_affected_stages(changed: str, run_again: set[str]) -> None:
    assert (ROOT / changed).is_file()
    stages = {
        name
        for name, stage in STAGES.items()
        if any(Path(changed).is_relative_to(dep) for dep in stage["deps"])
        and not stage.get("frozen")
    }
    assert stages == run_again


@pytest.mark.parametrize("stage", STAGES)
def test_params_are_the_keys_that_a_script_gets(stage: str) -> None:
    file = script(stage)
    keys = keys_in(parsed(file)).union(*map(keys_in, called_functions(file)))
    listed = {key for key in STAGES[stage].get("params", []) if isinstance(key, str)}
    assert listed == keys


def test_dvc_yaml_has_at_most_275_lines() -> None:
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 275


@pytest.mark.parametrize("stage", sorted(STAGES.keys() - NOT_RUN_CACHED))
def test_run_cache_has_every_stage_that_computes_data(stage: str) -> None:
    """DVC's run cache leaves out stages with a file in `outs` that is not cached."""
    outs = STAGES[stage].get("outs", [])
    paths = [out if isinstance(out, str) else next(iter(out)) for out in outs]
    uncached = [out for out in outs if not isinstance(out, str)]
    assert not uncached or not any(path.startswith("data/") for path in paths)
