"""The pipeline's scripts, one a stage."""

from pathlib import Path

from infini.console.stage import help_first

help_first(Path(__file__).parent)
