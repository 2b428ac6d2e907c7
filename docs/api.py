"""The API reference out of the docstrings, as pages: `make docs` writes docs/api/index.html."""

import sys
import warnings
from pathlib import Path

import pdoc

import infini


def write(folder: Path) -> None:
    """The public names of `infini` and `infini.memory`; whatever pdoc warns of is an error."""
    for name in infini.__all__:  # pdoc looks for them, and they are there when first asked for
        setattr(infini, name, getattr(infini, name))
    with warnings.catch_warnings(action="error"):
        pdoc.pdoc("infini", "!infini.(?!memory$)", output_directory=folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
