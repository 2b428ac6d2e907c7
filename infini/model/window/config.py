"""Options of `retrofit` with method="window"."""

from dataclasses import dataclass
from typing import ClassVar

from infini.choices import Method, WindowUpdate, check_choice, check_integer
from infini.errors import InputError
from infini.model.retrofit_config import RetrofitConfig


@dataclass(frozen=True)
class WindowConfig(RetrofitConfig):
    """A sliding window with sinks, and the memory of what has left the window.

    `layers`: decoder layers with a memory; None: all but those with a sliding window of the base's
    own, or all if every layer has one; []: none, a plain sliding window. In a base where some
    layers have a sliding window of their own, those without a memory keep it.
    """

    method: ClassVar[Method] = "window"

    # Last tokens that a query attends to exactly, itself included; in tokens
    window: int = 256

    # First tokens of a text (attention sinks) that every query attends to; in tokens
    sinks: int = 4

    # Write rule of the matrix memory; "none": no matrix
    update: WindowUpdate = "delta"

    # Evicted key-value pairs that each key-value head retains exactly; 0: none
    retained: int = 0

    # Registered name of the retention policy, which scores the pairs to retain
    policy: str = "decayed_attention"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("window", self.window, 1)
        check_integer("sinks", self.sinks, 0)
        check_choice("update", self.update, WindowUpdate)
        check_integer("retained", self.retained, 0)
        if not isinstance(self.policy, str):
            raise InputError(f"policy must be the name of a retention policy, got {self.policy!r}")
        if self.retained and self.layers == []:
            raise InputError(f"retained must be 0 with layers=[], got {self.retained}")
