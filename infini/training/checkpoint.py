"""Training checkpoints, keyed by everything that decides a training's result.

A killed stage finds its own checkpoint and continues to the same bits; any change of params,
inputs or code gives another key. They lie outside the stage's outputs, as safetensors. Many nodes
need this folder on a shared file system.
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

from infini import processes
from infini.errors import InputError
from infini.model.tensor_files import read_tensors, write_tensors
from infini.paths import CHECKPOINTS

log = logging.getLogger(__name__)

KEY_DIGITS = 16  # hexadecimal


def fingerprint(
    settings: Any, inputs: Iterable[str | Path], tensors: Mapping[str, Tensor] | None = None
) -> str:
    """Hash everything that decides a training's result, code and precision of products included.

    Args:
        settings: Settings, as JSON can hold them; `infini_config` knows the base.
        inputs: Input files, and folders, of which every file below counts.
        tensors: What the training starts from, unless settings and files decide it.

    Returns:
        `KEY_DIGITS` hexadecimal digits.
    """
    settings = [processes.precision(), settings]
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
    return digest.hexdigest()[:KEY_DIGITS]


class Checkpoint:
    """Checkpoint of one training: tensors, optimizer states and a JSON record."""

    def __init__(self, name: str, key: str):
        self.name, self.path = name, CHECKPOINTS / f"{name}-{key}.safetensors"

    def save(
        self, tensors: dict[str, Tensor], optimizers: list[Optimizer], record: dict[str, Any]
    ) -> None:
        """Write atomically; InputError if the disk is full, the last checkpoint stays."""
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
        """Restore tensors and optimizers in place.

        Returns:
            The record; None without a checkpoint or with a damaged one: training starts over, to
            the same bits.
        """
        if not self.path.exists():
            return None
        if self.path.is_dir():
            raise InputError(f"{self.path}: must be a file, is a folder; remove it")
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
        """Delete this training's checkpoints of all settings."""
        for file in (self.path, *CHECKPOINTS.glob(f"{self.name}-{'[0-9a-f]' * KEY_DIGITS}.*")):
            file.unlink(missing_ok=True)
        if CHECKPOINTS.is_dir() and not any(CHECKPOINTS.iterdir()):
            shutil.rmtree(CHECKPOINTS)
