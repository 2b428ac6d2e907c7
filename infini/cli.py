"""The frame of every stage script: logging, and the user's mistakes in one line."""

import sys
from collections.abc import Callable

from infini.errors import InputError
from infini.progress import configure_logging


def run(main: Callable[..., None]) -> None:
    """Call main with the command line's words; any failure exits non-zero."""
    configure_logging()
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the next run goes on from the last epoch")
