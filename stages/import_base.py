"""Write data/base from a GGUF file that a Python package carries."""

from pathlib import Path

from infini.console.stage import run
from infini.model.gguf import convert, packaged

FOLDER = Path("data/base")


def main(package: str, file: str) -> None:
    convert(packaged(package, file), FOLDER)


if __name__ == "__main__":
    run(main)
