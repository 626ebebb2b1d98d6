"""A tiny random model of every family: sizes by the names its config uses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from backend.models.sources.spec import TOY_FOLDER

CONTEXT, WINDOW, VOCABULARY = 128, 16, 512
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    **ENDS,
}
HEADS16 = {**BASE, "head_dim": 16}
OWN_KEYS = {key: value for key, value in BASE.items() if key != "num_key_value_heads"}
GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": CONTEXT,
    **ENDS,
}
PLAIN = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 4}
FALCON = {**PLAIN, "num_attention_heads": 4, **ENDS}
TOP2 = {"num_experts_per_tok": 2}
MOE = {**BASE, **TOP2, "moe_intermediate_size": 32, "num_experts": 4}
LOCAL_MOE = {**BASE, **TOP2, "num_local_experts": 4}
DEEPSEEK = {
    **BASE,
    **TOP2,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "n_group": 1,
    "topk_group": 1,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
WINDOWS = {"sliding_window": WINDOW}
SOME_WINDOWS = {**WINDOWS, "layer_types": ["sliding_attention", "full_attention"] * 2}
HALF_LINEAR = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": BASE,
    "mistral": {**BASE, **WINDOWS},
    "qwen2": BASE,
    "qwen3": HEADS16,
    "gemma": HEADS16,
    "gemma2": {**HEADS16, **WINDOWS, "query_pre_attn_scalar": 16},
    "gemma3_text": {**HEADS16, **SOME_WINDOWS, "query_pre_attn_scalar": 16},
    "gemma3n_text": {
        **HEADS16,
        **SOME_WINDOWS,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0] * 4,
        "intermediate_size": [96] * 4,
        "altup_num_inputs": 2,
    },
    "phi": OWN_KEYS,
    "phi3": BASE,
    "opt": {**OWN_KEYS, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "opt, as 350m": {
        **OWN_KEYS,
        "model_type": "opt",
        "ffn_dim": 96,
        "word_embed_proj_dim": 32,
        "do_layer_norm_before": False,
    },
    "gpt2": GPT,
    "gpt_neo": {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": WINDOW,
        "max_position_embeddings": CONTEXT,
        "intermediate_size": 96,
        **ENDS,
    },
    "gpt_neox": OWN_KEYS,
    "gptj": {**GPT, "rotary_dim": 8, "n_inner": 96},
    "codegen": {**GPT, "rotary_dim": 8},
    "gpt_bigcode": GPT,
    "openai-gpt": GPT,
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 4, "n_head": 4, **ENDS},
    "mpt": {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "n_layers": 4,
        "n_heads": 4,
        "max_seq_len": CONTEXT,
    },
    "falcon": {**FALCON, "max_position_embeddings": CONTEXT},
    "falcon, ALiBi": {**FALCON, "model_type": "falcon", "alibi": True},
    "bert": {**OWN_KEYS, "is_decoder": True},
    "xglm": {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "ffn_dim": 96,
        "num_layers": 4,
        "attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    },
    "cohere": {**BASE, "logit_scale": 0.25},
    "cohere2": {**BASE, **WINDOWS, "logit_scale": 0.25},
    "granite": {
        **BASE,
        "logits_scaling": 8.0,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.25,
    },
    "olmo": BASE,
    "olmo2": BASE,
    "stablelm": BASE,
    "starcoder2": BASE,
    "glm": HEADS16,
    "glm4": HEADS16,
    "smollm3": BASE,
    "nemotron": BASE,
    "exaone4": {**BASE, **WINDOWS, "sliding_window_pattern": 2},
    "ernie4_5": {**BASE, "head_dim": 16},
    "mixtral": LOCAL_MOE,
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**MOE, "head_dim": 16},
    "olmoe": {**BASE, **TOP2, "num_experts": 4},
    "phimoe": LOCAL_MOE,
    "granitemoe": {**LOCAL_MOE, "logits_scaling": 8.0},
    "deepseek_v2": {**DEEPSEEK, "q_lora_rank": None},
    "deepseek_v3": {**DEEPSEEK, "q_lora_rank": 32},
    "gpt_oss": {**LOCAL_MOE, **SOME_WINDOWS, "head_dim": 16},
    "glm4_moe": {**DEEPSEEK, "head_dim": 16},
    "dots1": DEEPSEEK,
    "ernie4_5_moe": {
        **BASE,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    },
    "hunyuan_v1_moe": {**HEADS16, "num_experts": 4, "moe_topk": 2},
    "flex_olmo": {**BASE, **TOP2, "num_experts": 4},
    "granitemoeshared": {**LOCAL_MOE, "shared_intermediate_size": 32, "logits_scaling": 8.0},
    "granitemoehybrid": {
        **LOCAL_MOE,
        "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
    },
    "lfm2_moe": {**MOE, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"] * 2},
    "qwen3_5_moe_text": {**MOE, **HALF_LINEAR, "shared_expert_intermediate_size": 32},
    "llama4_text": {
        **HEADS16,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": WINDOW,
    },
    "qwen3_5_text": {**BASE, **HALF_LINEAR},
    "qwen3_next": {**MOE, **HALF_LINEAR, "shared_expert_intermediate_size": 32},
    "lfm2": {
        **BASE,
        "layer_types": ["conv", "full_attention"] * 2,
        "block_auto_adjust_ff_dim": False,
    },
    "falcon_h1": {
        **HEADS16,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "jamba": {
        **MOE,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
    },
    "minimax": {**LOCAL_MOE, "head_dim": 16, "layer_types": HALF_LINEAR["layer_types"]},
    "recurrent_gemma": {
        **HEADS16,
        "attention_window_size": WINDOW,
        "lru_width": 64,
        "block_types": ["recurrent", "attention"],
    },
    "zamba2": {
        **BASE,
        "mamba_d_state": 8,
        "mamba_headdim": 16,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "hybrid_layer_ids": [1, 3],
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "adapter_rank": 8,
        "n_mamba_heads": 8,
    },
    "mamba": {**PLAIN, "state_size": 8},
    "mamba2": {**PLAIN, "state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1},
    "rwkv": {
        **PLAIN,
        "context_length": CONTEXT,
        "attention_hidden_size": 64,
        "intermediate_size": 96,
    },
}


def write_tiny(family: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Save a random model of `family` with the tokenizer of the built-in toy."""
    fields = dict(FAMILIES[family])
    config = AutoConfig.for_model(fields.pop("model_type", family), **fields)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOY_FOLDER / name, folder)
