"""Tensors in safetensors files, with a hash of the content that is checked on reading."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from infini.errors import InputError

HASH_KEY = "sha256"  # in a file's metadata
HASH_THREADS = 4
HASH_SMALL = 2**20  # fewer values are hashed by one thread


def content_hash(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256 of a text and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def values_hash(
    tensors: Mapping[str, Tensor], text: str = "", dtype: torch.dtype = torch.bfloat16
) -> str:
    """Hash values, whatever type and device they are held in.

    Args:
        tensors: the tensors by name, of any class: sharded, quantised.
        text: hashed as well.
        dtype: type to which values of floating point are rounded; those of other types, and of one
            byte, count as they are.

    Returns:
        64 hexadecimal digits: SHA-256 of the text and of every tensor's name, shape and values.
    """
    plain = plain_tensors(dict(sorted(tensors.items())))
    if sum(tensor.numel() for tensor in tensors.values()) < HASH_SMALL:
        digests = [_values_digest(name, tensor, dtype) for name, tensor in plain]
    else:
        pending: list[Future[bytes]] = []
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            for name, tensor in plain:
                pending.append(pool.submit(_values_digest, name, tensor, dtype))
                if len(pending) > HASH_THREADS:  # few tensors at once in memory
                    pending[-HASH_THREADS].result()
        digests = [digest.result() for digest in pending]
    return hashlib.sha256(b"".join([text.encode(), *digests])).hexdigest()


@torch.no_grad()
def _values_digest(name: str, tensor: Tensor, dtype: torch.dtype) -> bytes:
    """Return the SHA-256 of a tensor's name, shape and values."""
    digest = hashlib.sha256(f"{name} {tuple(tensor.shape)}".encode())
    if tensor.is_floating_point() and tensor.element_size() > 1:
        tensor = tensor.to(dtype)
    digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


@torch.no_grad()
def tensors_state(tensors: Iterable[Tensor]) -> list[tuple[int, int, float]]:
    """Return what changes with tensors: addresses, versions, norms (of changes by `.data`).

    A sharded or quantised tensor counts by the tensors in it; integers have no norm.
    """
    parts = [part for tensor in tensors for part in _parts(tensor)]
    norms = dict.fromkeys(map(id, parts), 0.0)
    for size in (2, 4, 8):
        floats = [x for x in parts if x.is_floating_point() and x.element_size() == size]
        if floats:
            found = torch._foreach_norm(floats, dtype=torch.float32 if size == 2 else None)
            norms |= {id(x): norm.item() for x, norm in zip(floats, found, strict=True)}
    return [(x.data_ptr(), x._version, norms[id(x)]) for x in parts]


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a plain tensor itself, of another one the tensors that are held here."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from _parts(getattr(tensor, name))


def plain_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors and their names; a sharded one whole, of a quantised one the tensors in it."""
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.detach()
        if is_traceable_wrapper_subclass(whole):
            parts, _ = whole.__tensor_flatten__()
            yield from plain_tensors({f"{name}.{part}": getattr(whole, part) for part in parts})
        else:
            yield name, whole


def check_tensors_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that no tensor has a NaN or an infinity.

    Args:
        tensors: the tensors by name.
        source: file, folder or key that they are from; begins the message.

    Raises:
        InputError: If one has; the message names the first.
    """
    for name, tensor in plain_tensors(tensors):
        if not tensor.is_floating_point() or tensor.element_size() == 1:
            continue
        if not tensor.isfinite().all():
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
