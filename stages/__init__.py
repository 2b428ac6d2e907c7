"""The pipeline's scripts, one a stage."""

import gc
import sys

if sys.argv[0] == "-m":  # a stage is being started, see `infini.cli.run`
    gc.disable()  # importing makes much and frees nothing
