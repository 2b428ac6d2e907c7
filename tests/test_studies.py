"""Studies: the same code and stages on another base, in a folder that a default run never sees."""

import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from dvc.repo import Repo

from infini import params
from toy import read_params

STUDIES = sorted(file.parent for file in (ROOT / "studies").glob("*/params.yaml"))
LINKS = (
    "dvc.yaml",
    "infini",
    "stages",
    ".dvcignore",
    ".dvc/config",
    ".dvc/plots",
    "audits/dvc.yaml",
)


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_studys_params_are_right(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert params.check_params().pretrain is None


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_a_study_has_stages_and_code_of_the_root(folder: Path) -> None:
    for name in LINKS:
        assert (folder / name).is_symlink()
        assert not (folder / name).readlink().is_absolute()
        assert (folder / name).samefile(ROOT / name)


def shell(*words: str) -> str:
    """What a command prints, this environment's programs at hand."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        words, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def study_params() -> dict[str, Any]:
    """The toy project's, without any version and a base of its own training."""
    content = read_params()
    del content["pretrain"]
    content["base"]["model"], content["data"]["corpus"] = "data/base", "../../text"
    return content | {"replacements": {}, "adapters": {}}


@pytest.fixture
def repository(project: Path, base_folder: Path) -> Path:
    """This checkout's code in a toy one, with a study of which only its own files are there."""
    for name in ("Makefile", "dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, name)
    for name in ("infini", "stages"):
        Path(name).symlink_to(ROOT / name)
    for name in ("audits", "studies/toy/base"):
        Path(name).mkdir(parents=True)
    shutil.copy(ROOT / "audits/dvc.yaml", "audits")
    shell("git", "init", "-q")
    shell(sys.executable, "-m", "dvc", "init", "-q")
    shutil.copytree(ROOT / ".dvc/plots", ".dvc/plots", dirs_exist_ok=True)
    Path("studies/toy/params.yaml").write_text(yaml.safe_dump(study_params()))
    base = {"wdir": "..", "cmd": f"cp -r {base_folder} data/base"}
    base["outs"] = [{"data/base": {"cache": False}}]
    Path("studies/toy/base/dvc.yaml").write_text(yaml.safe_dump({"stages": {"base": base}}))
    return project


def committed() -> set[str]:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.com")
    shell("git", "add", "-A")
    shell("git", *identity, "commit", "-qm", "all")
    return set(shell("git", "ls-files").split())


def test_a_study_runs_in_its_folder_alone(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = committed()
    shell("make", "-o", "setup", "links", "STUDY=toy")
    with chdir("studies/toy"):
        shell("dvc", "repro", "evaluate_ppl_base")
    new = committed() - before
    own = {*LINKS, "dvc.lock", "base/dvc.lock", "reports/metrics/base.json"}
    assert new == {f"studies/toy/{name}" for name in own}
    assert not Path("dvc.lock").exists()
    assert not Path("data").exists()
    with Repo(".") as root:
        assert not [stage.path for stage in root.index.stages if "studies" in stage.path]

    monkeypatch.chdir("studies/toy")
    again = shell("dvc", "repro", "evaluate_ppl_base")
    assert [line for line in again.splitlines() if "Running" in line] == [
        "Running stage 'check_inputs':"
    ]


def test_a_study_that_is_not_there_is_refused(repository: Path) -> None:
    done = subprocess.run(
        ["make", "-o", "setup", "study", "STUDY=tiny"], capture_output=True, text=True, check=False
    )
    assert "error: STUDY: one of toy is needed, got 'tiny'" in done.stderr
