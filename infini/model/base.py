"""The pretrained model that gets a memory: loads it and its tokenizer."""

import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from infini.errors import InputError
from infini.model.base_info import MODEL_TYPE
from infini.model.tensor_files import check_tensors_finite

if TYPE_CHECKING:  # slow to import, and not needed for a tokenizer
    from transformers import PreTrainedModel

MAX_LAYERS = 1_000  # a damaged config that says more would fill the memory
TOKENIZER_FILES = ("*token*", "*vocab*", "spiece.model")


def load_base(model: str, revision: str | None = None, **options: Any) -> "PreTrainedModel":
    """Load a base for reading: in float32 and evaluation mode, nothing trainable.

    Args:
        model: a folder written by save_pretrained, or a name on the Hugging Face hub.
        revision: commit, branch or tag on the hub; None: main.
        **options: further arguments of transformers' from_pretrained, such as dtype, device_map.

    Returns:
        The model; `config._commit_hash` is the commit on the hub, None for a folder.

    Raises:
        InputError: If there is no such model, its weights are missing, damaged or not finite, or
            its files have more layers than its config.
    """
    _check_weight_count(model, _load_config(model, revision))
    try:
        base, info = transformers.AutoModelForCausalLM.from_pretrained(
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
    if missing := sorted(info["missing_keys"]):  # transformers draws them at random
        raise InputError(f"base.model: {model!r}: its weights lack {', '.join(missing[:3])}")
    _check_layer_count(model, base, info["unexpected_keys"])
    check_tensors_finite(base.state_dict(), f"base.model: {model!r}")
    base.config._commit_hash = _commit_hash(model, revision)  # transformers 5.24 does not set it
    return base.eval().requires_grad_(False)


def load_tokenizer(model: str, revision: str | None = None) -> Tokenizer:
    """Load the tokenizer of a base.

    Args:
        model: a folder written by save_pretrained, or a name on the Hugging Face hub.
        revision: commit, branch or tag on the hub; None: main.

    Returns:
        The tokenizer.

    Raises:
        InputError: If there is no such model, or its tokenizer is missing or not readable.
    """
    _load_config(model, revision)
    folder = Path(os.path.expanduser(model))
    files = (file for pattern in TOKENIZER_FILES for file in folder.glob(pattern))
    if folder.is_dir() and not any(files):
        raise _no_tokenizer(model)
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            os.path.expanduser(model), revision=revision or "main", trust_remote_code=False
        )
    except BaseException as error:  # of many kinds; a panic of tokenizers is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise InputError(
            f"base.model: {model!r}: its tokenizer is not readable ({_first_line(error)})"
        ) from None
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if tokenizer.get_vocab().keys() <= added.union(tokenizer.all_special_tokens):
        raise _no_tokenizer(model)  # some classes are made without their vocabulary
    return tokenizer


def tokenizer_of(model: "PreTrainedModel") -> Tokenizer:
    """Load a model's tokenizer from where its base was loaded from.

    Args:
        model: a base, or a retrofitted one.

    Returns:
        The tokenizer.

    Raises:
        InputError: If the model was built in memory, or its tokenizer is not readable.
    """
    recorded = getattr(model, "infini_config", {}).get("base") or {
        "model": model.config._name_or_path,
        "revision": getattr(model.config, "_commit_hash", None),
    }
    if not recorded["model"]:
        raise InputError("tokenizer must be given: the model was not loaded from a folder or hub")
    return load_tokenizer(recorded["model"], recorded["revision"])


def _commit_hash(model: str, revision: str | None) -> str | None:
    """Return the commit on the hub of a base that was just loaded; None for a folder."""
    if os.path.isdir(os.path.expanduser(model)):
        return None
    cached = try_to_load_from_cache(model, "config.json", revision=revision or "main")
    return Path(cached).parent.name if isinstance(cached, str) else None


def _no_tokenizer(model: str) -> InputError:
    return InputError(
        f"base.model: {model!r} has no tokenizer: save the base's own to it "
        "(tokenizer.save_pretrained)"
    )


def _load_config(model: str, revision: str | None) -> PretrainedConfig:
    """Return the config of a base; InputError where there is none."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            os.path.expanduser(model), revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # a damaged config fails in as many ways as it has keys
        raise InputError(
            f"base.model: no model at {model!r}, give a folder written by save_pretrained or a "
            f"hub name ({_first_line(error)})"
        ) from None
    if config.model_type == MODEL_TYPE:
        raise InputError(f"base.model: {model!r} is a saved memory, not a base: use infini.load")
    return config


def _check_weight_count(model: str, config: PretrainedConfig) -> None:
    """Raise InputError where a config needs far more weights than its folder has.

    transformers would allocate all of them first.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layers, int) and layers > MAX_LAYERS:
        raise InputError(
            f"base.model: {model!r}: num_hidden_layers must be ≤ {MAX_LAYERS}, got {layers}"
        )
    files = list(Path(os.path.expanduser(model)).glob("*.safetensors"))
    if not files:
        return
    try:
        with torch.device("meta"):
            empty = transformers.AutoModelForCausalLM.from_config(config)
        needed = sum(parameter.numel() for parameter in empty.parameters())
        stored = sum(map(_count_values, files))
    except Exception:  # loading the weights raises the error
        return
    if needed > 16 * stored:  # packed weights, and a tied head, are fewer
        raise InputError(
            f"base.model: {model!r}: its config needs {needed:,} weights, its files have {stored:,}"
        )


def _check_layer_count(model: str, base: "PreTrainedModel", names: Collection[str]) -> None:
    """Raise InputError if an unexpected tensor belongs to a layer beyond the last one."""
    from infini.model.architectures import decoder_layers

    if not names:
        return
    layers = decoder_layers(base)
    path = next(name for name, module in base.named_modules() if module is layers)
    prefix = rf"({re.escape(base.base_model_prefix)}\.)?"  # some files lack it
    own = re.escape(path.removeprefix(f"{base.base_model_prefix}."))
    for name in sorted(names):
        match = re.match(rf"{prefix}{own}\.(\d+)\.", name)
        if match and int(match[2]) >= len(layers):
            raise InputError(
                f"base.model: {model!r}: its config has num_hidden_layers {len(layers)}, its "
                f"weights have more ({name})"
            )


def _count_values(file: Path) -> int:
    """Return the number of values in a safetensors file."""
    with safe_open(file, "pt") as opened:
        return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
