"""The pipeline's scripts, one a stage."""

from infini.console.stage import exit_quietly_on_ctrl_c

exit_quietly_on_ctrl_c()
