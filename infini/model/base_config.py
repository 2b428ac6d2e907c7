"""The `base:` section of params.yaml: which pretrained model gets a memory."""

from dataclasses import dataclass
from typing import Any, ClassVar

from infini.choices import Precision, check_choice
from infini.errors import InputError


@dataclass(frozen=True)
class BaseConfig:
    """The pretrained model that gets the memory."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    # A folder written by save_pretrained, or a name on the Hugging Face hub
    model: str

    # Commit, branch or tag on the hub; None: main
    revision: str | None = None

    # Type of matrix products in training and evaluation; bfloat16: for processors fast at it
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise InputError(f"model must be a folder or a hub name, got {self.model!r}")
        if self.revision is not None and not isinstance(self.revision, str):
            raise InputError(f"revision must be text or null, got {self.revision!r}")
        check_choice("precision", self.precision, Precision)
