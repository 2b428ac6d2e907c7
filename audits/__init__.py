"""Audits of the research log: each trains a version once more with one suspect in it."""

from pathlib import Path

from infini.console.stage import help_first, quiet_when_stopped

help_first(Path(__file__).parent)
quiet_when_stopped()
