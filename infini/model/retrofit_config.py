"""Base class of the options of `retrofit`: one dataclass a method, declared once.

`infini.model.window.config` and `infini.model.segmented.config` have the methods' own. The same
classes hold the arguments of `retrofit`, the saved infini_config.json and a `layer:` block of
params.yaml; they need neither torch nor pydantic.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, ClassVar, Self

from infini.choices import Method, check_integer
from infini.errors import InputError


@dataclass(frozen=True)
class RetrofitConfig:
    """Options that every method has; an invalid value raises InputError."""

    # pydantic, which reads params.yaml, validates these very classes
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    # The method that these options belong to, no option itself
    method: ClassVar[Method]

    # Decoder layers that get a memory, counted from 0; None: the method's default
    layers: list[int] | None = None

    def __post_init__(self) -> None:
        if self.layers is None:
            return
        if not isinstance(self.layers, list):
            raise InputError(f"layers must be a list of integers, got {self.layers!r}")
        for layer in self.layers:
            check_integer("layers", layer, 0)
        if len(set(self.layers)) < len(self.layers):
            raise InputError(f"layers must all differ, got {self.layers}")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """Return the config of these options.

        Args:
            options: option names and values; an absent one has its default.

        Raises:
            InputError: a name that is no option of this method, or an invalid value.
        """
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                match = get_close_matches(str(name), names, 1, 0.75)
                hint = f", did you mean {match[0]}?" if match else ""
                if not match and (others := _methods_with(str(name))):
                    hint = f", but of method={' and '.join(map(repr, others))}"
                raise InputError(
                    f"{name} is not an option of method={cls.method!r}{hint} "
                    f"(options: {', '.join(sorted(names))})"
                )
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Return the method's name and every option, as infini_config.json records them."""
        return {"method": self.method, **asdict(self)}


def _methods_with(option: str) -> list[str]:
    """Return the methods that have an option."""
    classes = [RetrofitConfig]
    for cls in classes:
        classes += cls.__subclasses__()
    found = {
        cls.method
        for cls in classes
        if hasattr(cls, "method") and option in [field.name for field in fields(cls)]
    }
    return sorted(found)
