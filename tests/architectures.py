"""Tiny random models of every architecture that a layer can be replaced in."""

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

L = 16
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 256,
}
CONFIGS = {
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "mistral": MistralConfig(**SIZES, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=4, n_positions=256),
}


def tiny(name: str) -> PreTrainedModel:
    """With weights large enough that attention matters, biases included; no end token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def text(batch: int, tokens: int) -> torch.Tensor:
    """Token 0, padding, does not occur."""
    return torch.randint(1, 50, (batch, tokens), generator=torch.Generator().manual_seed(tokens))
