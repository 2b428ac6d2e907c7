"""Command `new-study`: a minimal params.yaml that is valid, and that make runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from infini import params
from infini.cli.main import main
from toy import sentence


@pytest.fixture
def root(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a toy repository with this code, a base of context 128 and 60 texts."""
    monkeypatch.chdir(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(base_folder, max_position_embeddings=128)
    base.save_pretrained("my-base")
    AutoTokenizer.from_pretrained(base_folder).save_pretrained("my-base")
    Path("my-text").mkdir()
    for i in range(60):
        Path(f"my-text/{i}.txt").write_text(sentence(1500, i))
    for name in ("Makefile", "dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, name)
    return tmp_path


def new_study(*words: str) -> None:
    main(["new-study", *words])


def test_new_study_writes_a_minimal_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_study("mine", "--base", "my-base", "--text", "my-text")
    file = Path("studies/mine/params.yaml")
    assert capsys.readouterr().out == (
        "studies/mine/params.yaml: written; run it with: make study STUDY=mine\n"
    )
    content = yaml.safe_load(file.read_text())
    assert content["base"] == {"model": "../../my-base"}
    assert content["data"] == {
        "corpus": "../../my-text", "document_length": 512, "segment_length": 32
    }  # fmt: skip
    assert content["adapters"]["memory"]["layer"]["window"] == 32
    assert content["evaluate"] == {"full": {"context": 128}}
    assert content["policies"] == content["policy_curve"] == {"names": [], "budgets": []}
    assert content["ruler"] == {"policies": [], "budgets": []}
    assert params.check_params(file).targets() == [
        "evaluate_ppl_base",
        "evaluate_ppl_adapter@memory",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["a b", "my-base", "my-text"],
            "NAME must be letters, digits, - and _, at most 64, got 'a b'",
        ),
        (["old", "my-base", "my-text"], "studies/old: exists already; choose another name"),
        (
            ["mine", "./none", "my-text"],
            "base.model must be an existing folder or a hub name, got './",
        ),
        (["mine", "my-base", "./none"], "data.corpus must be sotu, kjv, a folder of .txt"),
        (["mine", "my-base", "."], "data.corpus must be a folder of texts alone, got '.'"),
        (["mine", "gone/base", "my-text"], "--base: the config of 'gone/base' cannot be read"),
        (
            ["mine", "short", "my-text"],
            "studies/mine/params.yaml: evaluate.window.sizes + sinks must",
        ),
    ],
)
def test_new_study_rejects_arguments_and_leaves_nothing(
    root: Path,
    base_folder: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("studies/old").mkdir(parents=True)
    Path("short").symlink_to(base_folder)
    name, base, text = words
    with pytest.raises(SystemExit) as ended:
        new_study(name, "--base", base, "--text", text)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert [path.name for path in Path("studies").iterdir()] == ["old"]


def test_new_study_needs_the_repositorys_root(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dvc.yaml").unlink()
    with pytest.raises(SystemExit):
        new_study("mine", "--base", "my-base", "--text", "my-text")
    assert capsys.readouterr().err == "error: dvc.yaml: not found; run from the repository's root\n"


@pytest.mark.readme
def test_make_study_runs_a_new_study(root: Path) -> None:
    new_study("mine", "--base", "my-base", "--text", "my-text")
    for name in ("infini", "stages"):
        shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".dvc", ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "*.local"))
    identity = {
        f"GIT_{role}_{k}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for k in ("NAME", "EMAIL")
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | identity | {"PATH": path}
    for words in (
        ["git", "init", "-q"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "all"],
        ["make", "-o", "setup", "-o", ".dvc/plots/page.html", "study", "STUDY=mine"],
    ):
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    report = Path("studies/mine/reports")
    assert {f.stem for f in (report / "metrics").iterdir()} == {"base", "memory"}
    assert "memory" in (report / "compare.md").read_text()
    assert (report / "index.html").is_file()
