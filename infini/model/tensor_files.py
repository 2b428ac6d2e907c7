"""Tensors on disk: safetensors with a hash of what was written, checked when they are read."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infini.errors import InputError

HASH = "sha256"  # its key


def content_hash(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of every tensor's name, type, shape and bytes, and of a text."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write them, with metadata their hash too, the folder made if need be.

    InputError where that cannot be.
    """
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    known = dict(metadata or {})
    if known:
        known[HASH] = content_hash(plain, json.dumps(known, sort_keys=True))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, file, known or None)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be written: {error}") from None


def read_tensors(file: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_tensors` wrote, and its metadata.

    InputError for what is no safetensors file, and where the hash says that it was changed.
    """
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise InputError(f"{file}: no readable safetensors file ({error})") from None
    wanted = metadata.pop(HASH, None)
    if metadata and wanted != content_hash(tensors, json.dumps(metadata, sort_keys=True)):
        raise InputError(f"{file}: damaged, it is not what was written (its {HASH} differs)")
    return tensors, metadata
