"""Display of a running training: log lines, a bar, and live curves in files."""

import logging
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from infini.console import live
from infini.console.live import LiveCurves, ProgressView


class Clock:
    """A clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr(live, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Run in a folder of its own, without a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(live, "on_terminal", lambda: False)
    return Clock(monkeypatch)


def take_steps(view: ProgressView | LiveCurves, clock: Clock, count: int, seconds: float) -> None:
    for _ in range(count):
        clock.now += seconds
        view.on_step_end(0.5, 100)


def test_progress_view_logs_epochs_and_marks_the_best(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    best = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.25}
    worse = {"epoch": 2, "train_loss": 1 / 3, "val_loss": 0.75}
    with ProgressView("v2 distill", steps=20, done=0, epochs=2) as view:
        take_steps(view, clock, 4, 2.0)
        view.on_epoch_end(best, best)
        take_steps(view, clock, 4, 6.0)
        view.on_epoch_end(worse, best)
    assert caplog.messages == [
        "v2 distill: epoch 1/2 train=0.5 val=0.25 * (50 tokens/s, 00:32 left)",
        "v2 distill: epoch 2/2 train=0.333333 val=0.75 (25 tokens/s, 00:48 left)",
    ]


def test_progress_view_marks_no_epoch_without_validation(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    row = {"epoch": 1, "train_loss": 0.5, "val_loss": math.nan}
    with ProgressView("v1", steps=4, done=0, epochs=5) as view:
        take_steps(view, clock, 4, 1.0)
        view.on_epoch_end(row, row)
        clock.now += live.LINE_SECONDS + 1
        view.on_step_end(0.125, 100)
    assert caplog.messages == [
        "v1: epoch 1/5 train=0.5 (100 tokens/s)",
        "v1: step 5/4 loss 0.125, 14 tokens/s",
    ]


def test_progress_view_logs_steps_every_line_seconds(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(live, "LINE_SECONDS", 30.0)
    best = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.25}
    with ProgressView("v1", steps=100, done=7, epochs=5) as view:
        take_steps(view, clock, 9, 10.0)  # lines are due at 40 and 80 seconds
        assert caplog.messages == [
            "v1: step 11/100 loss 0.5, 10 tokens/s, 14:50 left",
            "v1: step 15/100 loss 0.5, 10 tokens/s, 14:10 left",
        ]
        view.on_epoch_end(best, best)
        caplog.clear()
        take_steps(view, clock, 4, 10.0)  # from the epoch's own line on
        assert caplog.messages == [
            "v1: step 20/100 loss 0.5, 10 tokens/s, best val 0.25, 13:20 left"
        ]


def test_progress_view_draws_a_bar_on_terminal(
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(live, "on_terminal", lambda: True)
    monkeypatch.setattr(live, "POINT_SECONDS", 5.0)
    best = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.25}
    with ProgressView("v2 distill", steps=20, done=3, epochs=2) as view:
        take_steps(view, clock, 5, 1.0)
        assert view.bar.postfix is None
        take_steps(view, clock, 1, 1.0)
        assert (view.bar.n, view.bar.total) == (9, 20)
        assert view.bar.postfix == "loss 0.5, 100 tokens/s"
        view.on_epoch_end(best, best)
        take_steps(view, clock, 6, 1.0)
    shown = capsys.readouterr().err
    assert "v2 distill:  15%" in shown  # as it began
    assert "loss 0.5, 100 tokens/s, best val 0.25" in shown
    assert re.search(r"15/20 .*\n$", shown)  # closed where it was
    assert not caplog.messages


def points(file: str) -> list[list[str]]:
    return [line.split("\t") for line in Path(f"live/{file}.tsv").read_text().splitlines()]


def test_live_curves_are_deleted_at_the_end(clock: Clock) -> None:
    row = {"epoch": 1, "train_loss": 0.75, "val_loss": math.nan}
    with LiveCurves("v2 finetune seed 0", steps=20, done=7, epochs=2) as curves:
        take_steps(curves, clock, 5, 0.4)  # a point is due after a second
        curves.on_epoch_end(row, row)
        curves.on_epoch_end(row | {"val_loss": 0.5}, row)
        folder = "v2-finetune-seed-0/plots/metrics"
        assert points(f"{folder}/step loss") == [["step", "step loss"], ["10", "0.5"]]
        assert points(f"{folder}/train_loss")[1:] == [["12", "0.75"], ["12", "0.75"]]
        assert points(f"{folder}/val_loss")[1:] == [["12", "0.5"]]  # none where it is NaN
        assert {file.stem for file in Path("live", folder).iterdir()} == {
            "step loss", "train_loss", "val_loss"
        }  # fmt: skip
    assert not Path("live").exists()


def test_live_curves_of_another_training_stay(clock: Clock) -> None:
    Path("live/other").mkdir(parents=True)
    with LiveCurves("v1", steps=4, done=0, epochs=1) as curves:
        take_steps(curves, clock, 1, 2.0)
        assert Path("live/v1").is_dir()
    assert [file.name for file in Path("live").iterdir()] == ["other"]


def interrupted(clock: Clock) -> None:
    """Two steps, and Ctrl-C."""
    with LiveCurves("v1", steps=4, done=0, epochs=1) as curves:
        take_steps(curves, clock, 2, 2.0)
        raise KeyboardInterrupt


def test_live_curves_stay_after_failure(clock: Clock) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(clock)
    assert points("v1/plots/metrics/step loss")[1:] == [["1", "0.5"], ["2", "0.5"]]


def test_live_curves_continue(clock: Clock) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(clock)
    curves = LiveCurves("v1", steps=4, done=2, epochs=1)
    take_steps(curves, clock, 1, 2.0)
    expected = [["1", "0.5"], ["2", "0.5"], ["3", "0.5"]]
    assert points("v1/plots/metrics/step loss")[1:] == expected


def test_live_curves_of_two_trainings_end_in_any_order(clock: Clock) -> None:
    with LiveCurves("v3", steps=4, done=0, epochs=1) as outer:
        with LiveCurves("v5", steps=4, done=0, epochs=1) as inner:
            take_steps(inner, clock, 2, 2.0)
        take_steps(outer, clock, 2, 2.0)
        shutil.rmtree(live.LIVE)  # as the other process does after its last curve
    assert not live.LIVE.exists()
