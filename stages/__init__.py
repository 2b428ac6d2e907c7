"""The pipeline's scripts, one a stage."""

from pathlib import Path

from infini.console.stage import help_first, quiet_when_stopped

help_first(Path(__file__).parent)
quiet_when_stopped()  # while a script still imports
