"""What Hugging Face's tools look for in a folder, beside what is ours alone.

`config.json` names the class that loads it (`infini.model.auto`). The index is that of a
checkpoint in several files, of which only one is there: where Trainer resumes, or goes back to its
best, it loads what the index names; the base, which no checkpoint holds, stays as it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from infini.model.auto_registration import MODEL_TYPE
from infini.model.modules import infini_parameters


def write(model: PreTrainedModel, folder: Path, tensors_file: str) -> None:
    """Both; tensors_file: where our tensors are, in `folder`."""
    # Without metadata: a base's own class, which would draw all else at random, stops at that.
    index = {"weight_map": dict.fromkeys(full_names(model).values(), tensors_file)}
    for name, content in {
        CONFIG_NAME: {"model_type": MODEL_TYPE},
        SAFE_WEIGHTS_INDEX_NAME: index,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def full_names(model: PreTrainedModel) -> dict[str, str]:
    """Of our tensors: the name in our file → that in the model's state_dict."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {ours: names[id(parameter)] for ours, parameter in infini_parameters(model).items()}


def with_full_names(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict, in which our tensors may have the names of our file."""
    full = full_names(model)
    return {full.get(name, name): tensor for name, tensor in tensors.items()}
