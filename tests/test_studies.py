"""Studies: the same code and stages on another base or with other recipes, each a DVC project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from dvc.repo import Repo

from infini import params
from toy import read_params, stage, write_params

STUDIES = sorted(file.parent for file in (ROOT / "studies").glob("*/params.yaml"))
COPIES = ("dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/plots/curves.json")
LINKS = ("infini", "stages")
study = pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)


@study
def test_params_of_studies_are_valid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert params.check_params().pretrain is None


@study
def test_studies_have_the_roots_stages_and_code(folder: Path) -> None:
    for name in COPIES:
        assert not (folder / name).is_symlink()
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes(), "run make links"
    for name in LINKS:
        assert not (folder / name).readlink().is_absolute()
        assert (folder / name).samefile(ROOT / name)


@study
def test_data_base_exists_in_a_clone_or_a_stage_writes_it(folder: Path) -> None:
    in_git = shell("git", "ls-files", "data/base", "base/dvc.yaml", cwd=str(folder)).split()
    base = yaml.safe_load((folder / "params.yaml").read_text())["base"]["model"]
    assert in_git == ["base/dvc.yaml" if base == "data/base" else "data/base/README.md"]


@study
def test_packages_of_studies_are_not_the_environments(folder: Path) -> None:
    file = folder / "requirements.txt"
    lines = file.read_text().splitlines() if file.is_file() else []
    own = {line.split("==")[0] for line in lines if not line.startswith("#")}
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().split()}
    assert not own & pinned


@pytest.mark.parametrize(
    "folder",
    [f for f in (ROOT, *STUDIES) if (f / "reports/metrics/base.json").is_file()],
    ids=lambda folder: folder.name,
)
def test_report_is_made_of_files_in_git_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = shell("git", "ls-files", "params.yaml", "reports", cwd=str(folder)).split()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    stage("compare_report")
    page = Path("reports/index.html").read_text()
    for version in params.load_params().versions:
        assert version in page
    for name in ("reports/compare.md", "reports/compare.csv"):
        assert Path(name).read_bytes() == (folder / name).read_bytes()


def run(*words: str, cwd: str = ".") -> subprocess.CompletedProcess[str]:
    """Run a command with this environment's programs on the path."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, check=False)


def make(*words: str) -> subprocess.CompletedProcess[str]:
    """Run make; nothing is installed."""
    return run("make", "-o", "setup", "-o", ".dvc/plots/page.html", *words)


def shell(*words: str, cwd: str = ".") -> str:
    """Return what a command prints; AssertionError if it fails."""
    done = run(*words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def commit() -> set[str]:
    """Commit everything; return the files in Git."""
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.com")
    shell("git", "add", "-A")
    shell("git", *identity, "commit", "-qm", "all")
    return set(shell("git", "ls-files").split())


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def study_params() -> dict[str, Any]:
    """Return the toy project's params without versions, and with the study's own base."""
    content = read_params()
    del content["pretrain"]
    content["base"]["model"], content["data"]["corpus"] = "data/base", "../../text"
    return content | {"on_demand": [], "replacements": {}, "adapters": {}}


@pytest.fixture
def repository(project: Path, base_folder: Path) -> Path:
    """A toy repository of this checkout's code, and a study of which only its own files exist."""
    for name in ("Makefile", "dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, name)
    for name in LINKS:
        Path(name).symlink_to(ROOT / name)
    shell("git", "init", "-q")
    shell(sys.executable, "-m", "dvc", "init", "-q")
    shutil.copytree(ROOT / ".dvc/plots", ".dvc/plots", dirs_exist_ok=True)
    Path("studies/toy/base").mkdir(parents=True)
    Path("studies/toy/params.yaml").write_text(yaml.safe_dump(study_params()))
    base = {"wdir": "..", "cmd": f"mkdir -p data && cp -r {base_folder} data/base"}
    base["outs"] = [{"data/base": {"cache": False}}]
    Path("studies/toy/base/dvc.yaml").write_text(yaml.safe_dump({"stages": {"base": base}}))
    return project


@pytest.mark.slow
def test_study_runs_in_its_folder_alone(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = commit()
    shell("make", "-o", ".dvc/plots/page.html", "links", "STUDY=toy")
    folder = "studies/toy"
    shell("dvc", "repro", "evaluate_ppl_base", cwd=folder)
    new = commit() - before
    written = ("dvc.lock", "base/dvc.lock", "reports/metrics/base.json", "reports/curves/base.csv")
    own = {*COPIES, *LINKS, *written, "reports/prepared.json"}
    assert new == {f"{folder}/{name}" for name in own}
    assert not Path("dvc.lock").exists()
    assert not Path("data").exists()
    with Repo(".") as root:
        assert not [stage.path for stage in root.index.stages if "studies" in stage.path]

    again = shell("dvc", "repro", "evaluate_ppl_base", cwd=folder)
    assert stages_run(again) == ["check_inputs"]

    # in a clone without data nothing is computed again
    shutil.rmtree(f"{folder}/data")
    shutil.rmtree(f"{folder}/.dvc/cache")
    shell("dvc", "repro", "base/dvc.yaml", cwd=folder)
    missing = shell("dvc", "repro", "--allow-missing", "evaluate_ppl_base", cwd=folder)
    assert stages_run(missing) == ["check_inputs"]
    assert not Path(f"{folder}/data/prepared").exists()

    # a changed stage lacks its inputs, until everything runs
    content = yaml.safe_load(Path(f"{folder}/params.yaml").read_text())
    content["evaluate"]["full"]["stride"] = 4
    Path(f"{folder}/params.yaml").write_text(yaml.safe_dump(content))
    done = make("study", "STUDY=toy")
    assert done.returncode != 0
    assert f"not in this clone: all stages run by cd {folder} && dvc repro" in done.stderr
    assert "prepare_data" in stages_run(shell("dvc", "repro", "evaluate_ppl_base", cwd=folder))

    # dvc metrics diff reads other revisions of a study
    metrics = Path(f"{folder}/reports/metrics/base.json")
    content = json.loads(metrics.read_text())
    nats = content["segmented"]["nats"]
    content["segmented"]["nats"] = nats + 1
    metrics.write_text(json.dumps(content))
    commit()
    changes = json.loads(shell("dvc", "metrics", "diff", "--json", "HEAD~1", "HEAD", cwd=folder))
    assert changes["reports/metrics/base.json"]["segmented.nats"] == {
        "old": nats, "new": nats + 1, "diff": pytest.approx(1)
    }  # fmt: skip


def test_links_alone_make_the_template_of_plots(repository: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, name)
    planned = shell("make", "-n", "-W", "infini/console/plots_page.py", "links", "STUDY=toy")
    assert "-m infini.console.plots_page" in planned


def test_make_study_rejects_unknown_study(repository: Path) -> None:
    done = make("study", "STUDY=tiny")
    assert done.returncode != 0
    assert "error: STUDY must be one of: toy, got 'tiny'" in done.stderr


def test_default_run_leaves_out_versions_on_demand(repository: Path) -> None:
    content = read_params()
    content["on_demand"] = [*content["replacements"], "v3"]
    write_params(content)
    targets = shell(sys.executable, "-m", "infini", "params", "--targets").split()
    assert targets == ["evaluate_ppl_base", "evaluate_ppl_adapter@v5"]
    with Repo(".") as root:
        assert {stage.addressing for stage in root.index.stages} > set(targets)
