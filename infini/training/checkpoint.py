"""Training checkpoints: outside the stage's outputs, keyed by everything that decides the result.

A killed stage finds its own checkpoint again and goes on to the same bits; any
change of params, inputs or code gives another key. Safetensors and JSON only.
Many nodes need this folder on a file system that all of them see.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.optim import Optimizer

from infini.errors import InputError
from infini.model.tensor_files import read_tensors, write_tensors
from infini.paths import CHECKPOINTS

log = logging.getLogger(__name__)

KEY = 16  # hexadecimal digits of a checkpoint's key


def fingerprint(
    settings: Any, inputs: Iterable[str | Path], tensors: Mapping[str, Tensor] | None = None
) -> str:
    """Hash of the settings, the input files (folders: every file below) and this package's code.

    tensors: what the training starts from, where settings and files do not tell.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode())
    code = Path(__file__).parents[1]
    for path in (code, *map(Path, inputs)):
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if "__pycache__" not in file.parts:
                digest.update(file.name.encode())
                digest.update(file.read_bytes())
    if tensors:
        digest.update(save({k: t.detach().cpu().contiguous() for k, t in tensors.items()}))
    return digest.hexdigest()[:KEY]


class Checkpoint:
    """One training's checkpoint: trained tensors, optimizer states and a JSON record."""

    def __init__(self, name: str, key: str):
        self.name, self.path = name, CHECKPOINTS / f"{name}-{key}.safetensors"

    def save(
        self, tensors: dict[str, Tensor], optimizers: list[Optimizer], record: dict[str, Any]
    ) -> None:
        """Write atomically: a kill or a full disk (InputError) leaves the last good checkpoint."""
        flat = {f"tensor/{name}": t.detach() for name, t in tensors.items()}
        flat["rng/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            flat["rng/cuda"] = torch.cuda.get_rng_state()
        for i, optimizer in enumerate(optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                flat |= {f"optimizer/{i}/{index}/{k}": torch.as_tensor(v) for k, v in state.items()}
        partial = self.path.with_suffix(".partial")
        try:
            write_tensors(partial, flat, {"record": json.dumps(record)})
            os.replace(partial, self.path)
        except (OSError, InputError) as error:
            raise InputError(
                f"{self.path}: cannot be written ({error}): make room and run again, the last "
                "checkpoint is kept"
            ) from None
        finally:
            partial.unlink(missing_ok=True)

    def load(
        self, tensors: dict[str, Tensor], optimizers: list[Optimizer]
    ) -> dict[str, Any] | None:
        """Restore in place and return the record; None if there is no checkpoint, or a damaged one.

        Training then starts over, to the same bits.
        """
        if not self.path.exists():
            return None
        try:
            stored, metadata = read_tensors(self.path)
            record: dict[str, Any] = json.loads(metadata["record"])
        except (InputError, KeyError, ValueError) as error:
            log.warning("%s: not usable, the training starts over (%s)", self.path, error)
            self.path.unlink(missing_ok=True)
            return None
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
        for key, tensor in stored.items():
            kind, name = key.split("/", 1)
            if kind == "tensor":
                tensors[name].data.copy_(tensor)
            elif key == "rng/cpu":
                torch.set_rng_state(tensor)
            elif key == "rng/cuda":
                if torch.cuda.is_available():
                    torch.cuda.set_rng_state(tensor)
            else:
                i, index, field = name.split("/")
                states[int(i)].setdefault(int(index), {})[field] = tensor
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        return record

    def remove(self) -> None:
        """This training is done: no checkpoint of it is needed, of whatever settings."""
        for file in (self.path, *CHECKPOINTS.glob(f"{self.name}-{'[0-9a-f]' * KEY}.*")):
            file.unlink(missing_ok=True)
        if CHECKPOINTS.is_dir() and not any(CHECKPOINTS.iterdir()):
            shutil.rmtree(CHECKPOINTS)
