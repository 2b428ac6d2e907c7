"""Checkpoints and their keys."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

import infini
from infini import processes
from infini.errors import InputError
from infini.model.base import load_base
from infini.training import checkpoint
from infini.training.checkpoint import Checkpoint, fingerprint

PACKAGE = Path(infini.__file__).parent


def test_fingerprint_changes_with_settings_and_inputs(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("a")
    first = fingerprint({"lr": 1.0}, [tmp_path / "in"])
    assert fingerprint({"lr": 1.0}, [tmp_path / "in"]) == first
    assert fingerprint({"lr": 2.0}, [tmp_path / "in"]) != first
    (tmp_path / "in").write_text("b")
    assert fingerprint({"lr": 1.0}, [tmp_path / "in"]) != first


def test_fingerprint_changes_with_the_base_and_the_precision(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(change: Callable[[PreTrainedModel], None] = lambda base: None) -> str:
        base = load_base(str(base_folder))
        change(base)
        return fingerprint(infini.retrofit(base, segment_length=16).infini_config, [])

    def one_weight(base: PreTrainedModel) -> None:
        base.get_input_embeddings().weight.data[123, 5] += 0.1

    def config(base: PreTrainedModel) -> None:
        base.config.layer_norm_eps = 0.1

    first = key()
    assert key() == first
    keys = {key(one_weight), key(config)}
    monkeypatch.setattr(processes, "_precision", "bfloat16")
    assert len(keys | {first, key()}) == 4


def test_remove_deletes_checkpoints_of_all_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("v1-seed-1", "v1-seed-10", "v1")
    keys = ("0123456789abcdef", "fedcba9876543210")
    for name in names:
        for key in keys:
            Checkpoint(name, key).save({}, [], {})
    Path(".checkpoints/v1-seed-1-0123456789abcdee.partial").touch()
    Checkpoint("v1-seed-1", keys[0]).remove()
    left = {f"{name}-{key}.safetensors" for name in names[1:] for key in keys}
    assert {file.name for file in Path(".checkpoints").iterdir()} == left
    for name in names:
        Checkpoint(name, keys[0]).remove()
    assert not Path(".checkpoints").exists()


def test_load_names_a_folder_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    training = Checkpoint("v1", "0123456789abcdef")
    training.path.mkdir(parents=True)
    with pytest.raises(InputError, match=r"0123456789abcdef.safetensors: must be a file, is a fol"):
        training.load({}, [])


@pytest.mark.parametrize(
    "changed", ["memory/segment_scan.py", "model/modules.py", "training/loop.py"]
)
def test_fingerprint_changes_with_the_code(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "infini", ignore=ignored)
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "infini/training/checkpoint.py"))
    before = fingerprint({}, [])
    with (tmp_path / "infini" / changed).open("a") as file:
        file.write("# another line\n")
    assert fingerprint({}, []) != before
