"""Tiny random models of the architectures that the methods support or reject."""

import copy

import torch
from transformers import (
    AfmoeConfig,
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    DogeConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GlmConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
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
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 8, "sliding_window": 5}  # a sliding window in some layers
IN_TURN = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
OWN_WINDOW = ("mistral_5", "gemma2", "gemma3", "cohere2", "gpt_oss", "afmoe")
# Supported by method="window"
WINDOWED = {
    **CONFIGS,
    "mistral_5": MistralConfig(**GROUPED, sliding_window=5),
    "gemma2": Gemma2Config(**WIDE),
    "gemma3": Gemma3TextConfig(**WIDE, **IN_TURN),
    "opt": OPTConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=32,
        max_position_embeddings=256,
        word_embed_proj_dim=16,
    ),
    "phi": PhiConfig(**SIZES),
    "phi3": Phi3Config(**GROUPED, pad_token_id=0),
    "olmo2": Olmo2Config(**GROUPED),
    "stablelm": StableLmConfig(**GROUPED, partial_rotary_factor=0.5),
    "granite": GraniteConfig(**GROUPED),
    "cohere": CohereConfig(**GROUPED),
    "cohere2": Cohere2Config(**WIDE),
    "glm": GlmConfig(**GROUPED, head_dim=8, pad_token_id=0),
    "gpt_oss": GptOssConfig(**WIDE, **IN_TURN, num_local_experts=4, num_experts_per_tok=2),
    "afmoe": AfmoeConfig(
        **WIDE,
        **IN_TURN,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        num_shared_experts=1,
        num_dense_layers=1,
    ),
    # One layer has no positions
    "smollm3": SmolLM3Config(**GROUPED, pad_token_id=0, no_rope_layers=[1, 0, 1]),
    "llama_yarn": LlamaConfig(
        **GROUPED,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 64,
        },
    ),
}
# Rejected by method="window": their attention does not call AttentionInterface, or computes with
# the mask (Doge)
REFUSED = {
    "bloom": BloomConfig(vocab_size=50, hidden_size=16, n_layer=3, n_head=4),
    "gptj": GPTJConfig(
        vocab_size=50, n_embd=16, n_layer=3, n_head=4, n_positions=256, rotary_dim=4
    ),
    "doge": DogeConfig(**GROUPED),
}
# Their attention biases or sliding windows measure distance in columns of the cache
BY_COLUMN = {
    "mpt": MptConfig(d_model=16, n_heads=4, n_layers=3, vocab_size=50, max_seq_len=256),
    "gpt_neo": GPTNeoConfig(
        vocab_size=50,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=5,
        max_position_embeddings=256,
    ),
}
EVERY = {**CONFIGS, **WINDOWED, **REFUSED, **BY_COLUMN}


def tiny(name: str) -> PreTrainedModel:
    """Return a model whose weights are large enough that attention matters; no end token."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(EVERY[name])).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def text(batch: int, tokens: int) -> torch.Tensor:
    """Return random tokens, (batch, tokens), without the padding token 0."""
    return torch.randint(1, 50, (batch, tokens), generator=torch.Generator().manual_seed(tokens))
