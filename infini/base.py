"""Load a causal LM and find its parts, whatever the architecture calls them."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from infini import engine
from infini.errors import InputError
from infini.params import Base
from infini.progress import on_terminal

ATTENTION_NAMES = ("attention", "self_attn", "attn")


def load_model(base: Base) -> PreTrainedModel:
    """The base in float32 and evaluation mode, nothing in it trainable, where this process runs."""
    _check(base)
    if not on_terminal():
        transformers_logging.disable_progress_bar()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base.model,
        revision=base.revision or "main",
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return model.eval().requires_grad_(False).to(engine.device())


def load_tokenizer(base: Base) -> Tokenizer:
    """The base's own tokenizer."""
    _check(base)
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
        base.model, revision=base.revision or "main", trust_remote_code=False
    )
    return tokenizer


def _check(base: Base) -> None:
    """One line for a base that is not there, before anything is loaded."""
    try:
        AutoConfig.from_pretrained(
            base.model, revision=base.revision or "main", trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"params.yaml: base.model: no model at {base.model!r}: a folder written by "
            f"save_pretrained or a hub name is needed ({str(error).splitlines()[0]})"
        ) from None


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The ModuleList of the model's decoder layers."""
    depth = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise InputError(f"{type(model).__name__}: no ModuleList of {depth} decoder layers found")


def attention_name(layer: nn.Module) -> str:
    """The attribute under which a decoder layer keeps its attention."""
    for name in ATTENTION_NAMES:
        if isinstance(getattr(layer, name, None), nn.Module):
            return name
    raise InputError(f"{type(layer).__name__}: no attention under any of {ATTENTION_NAMES}")


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
