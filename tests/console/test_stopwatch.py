"""Duration of a stage, logged and written to a file."""

import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from infini.console import stopwatch
from infini.console.stopwatch import Stopwatch


def test_stopwatch_writes_seconds_and_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    now = 500.0
    clock = SimpleNamespace(perf_counter=lambda: now, time=lambda: now)
    monkeypatch.setattr(stopwatch, "time", clock)
    process = SimpleNamespace(create_time=lambda: 496.54)
    monkeypatch.setattr(stopwatch.psutil, "Process", lambda: process)
    watch = Stopwatch("v1-distill")
    now += 61.26
    watch.write(seconds_per_epoch=1.25)
    content = json.loads(Path("data/times/v1-distill.json").read_text())
    assert content == {"seconds": 61.3, "startup": 3.5, "seconds_per_epoch": 1.25}
    assert caplog.messages == ["v1-distill: 61.3 s"]


def test_stopwatch_startup_is_since_process_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Stopwatch("any").write()
    content = json.loads(Path("data/times/any.json").read_text())
    assert content.keys() == {"seconds", "startup"}
    assert 0 <= content["seconds"] < 1
    assert content["startup"] == pytest.approx(
        time.time() - psutil.Process().create_time(), abs=1.0
    )
