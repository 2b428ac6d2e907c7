"""Saved models in Hugging Face's own Auto classes.

The config.json of a saved model has the model type "infini". This module, which `import infini`
imports, tells AutoConfig, AutoModelForCausalLM and AutoTokenizer which class loads it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from infini.model.base_info import MODEL_TYPE

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

# Options that from_pretrained adds for a model whose weights are in the folder itself
FOLDER_OPTIONS = (
    "_commit_hash",
    "_from_auto",
    "_from_pipeline",
    "adapter_kwargs",
    "code_revision",
    "gguf_file",
    "revision",
    "subfolder",
    "trust_remote_code",  # never passed on: no code of a hub is run
    "use_safetensors",  # always
)


class InfiniConfig(PreTrainedConfig):  # type: ignore[misc]
    """Config of a saved model: its model type; infini_config.json has the options."""

    model_type = MODEL_TYPE


class InfiniForCausalLM:
    """Loader that AutoModelForCausalLM calls for a saved model."""

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
        """Load a saved model by `infini.load`.

        Args:
            folder: a folder that `save_pretrained` of a retrofitted model wrote.
            config: the config that AutoModelForCausalLM has read and adapted.
            base: the base, its folder or its hub name; None: by its recorded name.
            **options: arguments of from_pretrained, passed on for the base; `dtype` is float32
                if it is not given, or "auto".

        Raises:
            InputError: If `infini.load` raises it.
        """
        from infini.model.loading import load

        attention = getattr(config, "_attn_implementation", None)  # removed from the options
        if attention is not None:
            options["attn_implementation"] = attention
        for name in FOLDER_OPTIONS:
            options.pop(name, None)
        given = {name: value for name, value in options.items() if value not in (None, "auto")}
        return load(folder, base, **given)


class InfiniTokenizer:
    """Loader that AutoTokenizer calls for a saved model without a tokenizer of its own."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, *_: Any, **__: Any) -> "Tokenizer":
        """Load the base's tokenizer; see `load_base_tokenizer`."""
        from infini.model.loading import load_base_tokenizer

        return load_base_tokenizer(folder)


AutoConfig.register(MODEL_TYPE, InfiniConfig, exist_ok=True)
AutoModelForCausalLM.register(InfiniConfig, InfiniForCausalLM, exist_ok=True)
AutoTokenizer.register(InfiniConfig, tokenizer_class=InfiniTokenizer, exist_ok=True)
