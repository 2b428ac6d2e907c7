"""A saved model by the names that Hugging Face has for any: AutoModelForCausalLM, AutoTokenizer.

Its config.json says that it is ours; the classes here are what transformers then asks.
`infini.model.auto_registration` registers them in transformers' own import: so nothing
here imports more than a config before it is asked.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from infini.model.auto_registration import MODEL_TYPE

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

# What transformers says of the folder itself, or to a class that looks for its own weights.
OF_THE_FOLDER = (
    "_commit_hash",
    "_from_auto",
    "_from_pipeline",
    "adapter_kwargs",
    "code_revision",
    "gguf_file",
    "revision",
    "subfolder",
    "trust_remote_code",  # never: of the base neither
    "use_safetensors",  # always
)


class InfiniConfig(PreTrainedConfig):  # type: ignore[misc]
    """What config.json says; infini_config.json has the settings, the base its own config."""

    model_type = MODEL_TYPE


class SavedModel:
    """What AutoModelForCausalLM asks for a model that `save_pretrained` wrote."""

    config_class = InfiniConfig

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *_: Any,
        config: Any = None,
        base: "PreTrainedModel | str | Path | None" = None,
        **options: Any,
    ) -> "PreTrainedModel":
        """`infini.load`, and the base with these options of transformers' from_pretrained.

        dtype: of the base and of ours; float32 if it is not given, or "auto".
        """
        from infini.model.loading import load

        attention = getattr(config, "_attn_implementation", None)  # the config has taken it
        if attention is not None:
            options["attn_implementation"] = attention
        for name in OF_THE_FOLDER:
            options.pop(name, None)
        given = {name: value for name, value in options.items() if value not in (None, "auto")}
        return load(folder, base, **given)


class BaseTokenizer:
    """What AutoTokenizer asks for a folder without a tokenizer: the base's own."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, *_: Any, **__: Any) -> "Tokenizer":
        from infini.model.loading import load_recorded_tokenizer

        return load_recorded_tokenizer(folder)


def register_config() -> None:
    """The config of a saved model."""
    from transformers import AutoConfig

    AutoConfig.register(MODEL_TYPE, InfiniConfig, exist_ok=True)


def register_model() -> None:
    """The model, by AutoModelForCausalLM."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.register(InfiniConfig, SavedModel, exist_ok=True)


def register_tokenizer() -> None:
    """Its base's tokenizer."""
    from transformers import AutoTokenizer

    AutoTokenizer.register(InfiniConfig, tokenizer_class=BaseTokenizer, exist_ok=True)
