"""The pipeline's scripts, one a stage."""

import gc

gc.disable()  # importing makes much and frees nothing; `infini.cli.run` enables it again
