"""Tensors in safetensors files, with a hash of the content that is checked on reading."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infini.errors import InputError

HASH_KEY = "sha256"  # in a file's metadata


def content_hash(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256 of a text and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_tensors_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that no tensor has a NaN or an infinity.

    Args:
        tensors: the tensors by name.
        source: file, folder or key that they are from; begins the message.

    Raises:
        InputError: If one has; the message names the first.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{source}: {name} has values that are not finite")


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file.

    Args:
        file: path of the file; missing folders are created.
        tensors: the tensors by name.
        metadata: text to store beside them; with it, a hash of metadata and tensors is stored too.

    Raises:
        InputError: If the file cannot be written.
    """
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    stored = dict(metadata or {})
    if stored:
        stored[HASH_KEY] = content_hash(plain, json.dumps(stored, sort_keys=True))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, file, stored or None)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be written: {error}") from None


def read_tensors(file: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `write_tensors` wrote.

    Args:
        file: path of the file.

    Returns:
        The tensors by name, on the CPU, and the metadata without the hash.

    Raises:
        InputError: If the file is no safetensors file, or does not match its hash.
    """
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise InputError(f"{file}: no readable safetensors file ({error})") from None
    stored_hash = metadata.pop(HASH_KEY, None)
    if metadata and stored_hash != content_hash(tensors, json.dumps(metadata, sort_keys=True)):
        raise InputError(f"{file}: damaged, it is not what was written (its {HASH_KEY} differs)")
    return tensors, metadata
