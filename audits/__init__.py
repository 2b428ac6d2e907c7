"""Audits of the research log: each trains a version once more with one suspect in it."""

from infini.console.stage import exit_quietly_on_ctrl_c

exit_quietly_on_ctrl_c()
