"""The pretrained model that gets the memory: loaded from a folder or the hub, told apart."""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.errors import InputError
from infini.model.auto_registration import MODEL_TYPE

DEEPEST = 1_000  # layers; a damaged config that says more would fill the memory


def load_base(model: str, revision: str | None = None, **options: Any) -> PreTrainedModel:
    """The base in float32 and evaluation mode, nothing in it trainable.

    model: a folder written by save_pretrained, or a hub name; revision: of the hub, None: main.
    options: more for transformers' from_pretrained, dtype and device_map among them. InputError
    where there is none.
    """
    _check_size(model, _check(model, revision))
    try:
        base, found = AutoModelForCausalLM.from_pretrained(
            os.path.expanduser(model),
            revision=revision or "main",
            **{"dtype": torch.float32, **options},
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, as a config has keys of any type
        raise InputError(
            f"base.model: {model!r}: its weights are not readable ({_first_line(error)})"
        ) from None
    if missing := sorted(found["missing_keys"]):  # transformers draws them at random
        raise InputError(f"base.model: {model!r}: its weights lack {', '.join(missing[:3])}")
    check_finite(base.state_dict(), f"base.model: {model!r}")
    base.config._commit_hash = _commit(model, revision)  # from 5.24 transformers keeps none
    return base.eval().requires_grad_(False)


def load_tokenizer(model: str, revision: str | None = None) -> Tokenizer:
    """The base's own tokenizer; arguments and errors as of `load_base`."""
    _check(model, revision)
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            os.path.expanduser(model), revision=revision or "main", trust_remote_code=False
        )
    except BaseException as error:  # of many kinds; a panic of the tokenizers' own is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise InputError(
            f"base.model: {model!r}: its tokenizer is not readable ({_first_line(error)})"
        ) from None
    return tokenizer


def _commit(model: str, revision: str | None) -> str | None:
    """The commit on the hub that a base just loaded is of; None for one in a folder."""
    if os.path.isdir(os.path.expanduser(model)):
        return None
    cached = try_to_load_from_cache(model, "config.json", revision=revision or "main")
    return Path(cached).parent.name if isinstance(cached, str) else None


def _check(model: str, revision: str | None) -> PretrainedConfig:
    """The config of a base; one line where there is none, before anything is loaded."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            os.path.expanduser(model), revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # a damaged config fails in as many ways as it has keys
        raise InputError(
            f"base.model: no model at {model!r}: a folder written by save_pretrained or a hub "
            f"name is needed ({_first_line(error)})"
        ) from None
    if config.model_type == MODEL_TYPE:
        raise InputError(f"base.model: {model!r}: a saved memory, not a base: infini.load reads it")
    return config


def _check_size(model: str, config: PretrainedConfig) -> None:
    """InputError where a config asks for far more weights than are in the base's folder.

    transformers tells so too, once it has made them all. A tokenizer needs none of them.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > DEEPEST:
        raise InputError(
            f"base.model: {model!r}: its config has {layers} layers, {DEEPEST} are the most"
        )
    files = list(Path(os.path.expanduser(model)).glob("*.safetensors"))
    if not files:
        return
    try:
        with torch.device("meta"):
            wanted = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        there = sum(map(_numbers, files))
    except Exception:  # whoever loads it tells
        return
    if wanted > 16 * there:  # packed ones, and a tied head, are fewer there
        raise InputError(
            f"base.model: {model!r}: its config asks for {wanted:,} weights, {there:,} are there"
        )


def _numbers(file: Path) -> int:
    """How many are in a safetensors file."""
    with safe_open(file, "pt") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118


def _first_line(error: BaseException) -> str:
    """What an error of another library says, as far as a line holds it."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def check_finite(tensors: Mapping[str, Tensor], place: str) -> None:
    """InputError that names the first tensor with a NaN or an infinity; place: whose they are."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{place}: {name} has values that are not finite")


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Tells two bases apart, whatever type their weights are loaded in."""
    return tensors_fingerprint(model.state_dict())


def tensors_fingerprint(tensors: Mapping[str, Tensor], settings: str = "") -> str:
    """A hash of the names, the shapes and a few values, as bfloat16, of every tensor."""
    digest = hashlib.sha256(settings.encode())
    for name, tensor in tensors.items():
        if hasattr(tensor, "full_tensor"):  # of a sharded base
            tensor = tensor.full_tensor()
        sample = tensor.detach().flatten()[:: max(1, tensor.numel() // 64)].bfloat16().float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
