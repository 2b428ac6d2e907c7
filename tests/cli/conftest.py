"""Folder in which the tests run commands of `python -m infini`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging


@pytest.fixture
def folder_with_base(
    tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A working folder with a base in `base`; no progress bars, no logging set up."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("infini.cli.main.configure_logging", lambda: None)
    Path("base").symlink_to(base_folder)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    yield
    if bars:
        transformers_logging.enable_progress_bar()
