"""Records of a training: read, and errors that name the file."""

import json
from pathlib import Path

import pytest

from infini.errors import InputError
from infini.evaluation.training_record import check_settings, trained_seeds, training_figures
from infini.paths import Version

FILE = Path("reports/training/v5/finetune.json")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    FILE.parent.mkdir(parents=True)


def test_trained_seeds_and_training_figures() -> None:
    FILE.write_text('{"0": {"epochs": 3, "val_loss": 0.123456789}, "7": {}}')
    assert trained_seeds(Version("v5")) == [0, 7]
    assert training_figures(Version("v5", 0), "finetune") == {"epochs": 3, "val_loss": 0.123457}
    assert training_figures(Version("v5", 7), "finetune") == {}


@pytest.mark.parametrize("content", ["{}", '{"x": {}}', '{"-1": {}}', '{"²": {}}'])
def test_trained_seeds_rejects_a_record_without_seeds(content: str) -> None:
    FILE.write_text(content)
    with pytest.raises(InputError, match=f"^{FILE}: must hold figures by seed"):
        trained_seeds(Version("v5"))


@pytest.mark.parametrize("content", ["[]", '{"epochs": "x"}', '{"a": null}', '{"a": 1e999}'])
def test_training_figures_rejects_what_is_no_finite_number(content: str) -> None:
    FILE.write_text(f'{{"0": {content}}}')
    with pytest.raises(InputError, match=f"^{FILE}: 0: "):
        training_figures(Version("v5", 0), "finetune")


def test_check_settings_rejects_a_model_of_other_options() -> None:
    folder = Path("model")
    folder.mkdir()
    (folder / "infini_config.json").write_text(json.dumps({"method": "window", "window": 64}))
    check_settings(folder, {"method": "window", "window": 64, "layers": None, "alpha": 0.0})
    message = "window is 64, of the version 32: run its training again"
    with pytest.raises(InputError, match=message):
        check_settings(folder, {"method": "window", "window": 32})
