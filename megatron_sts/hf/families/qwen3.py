"""Qwen3: Llama's tensors, and norms of query and key, with an explicit head size."""

from transformers import Qwen3Config

from megatron_sts.config import LanguageArchitecture
from megatron_sts.hf.families.llama import LLAMA
from megatron_sts.hf.families.table import LanguageFamily, Rule


def _head(language: LanguageArchitecture) -> tuple[int, ...]:
    return (language.head_size,)


NORMS = (
    Rule("self_attention.q_layernorm.weight", ("self_attn.q_norm.weight",), _head),
    Rule("self_attention.k_layernorm.weight", ("self_attn.k_norm.weight",), _head),
)

QWEN3 = LanguageFamily(
    Qwen3Config,
    (*LLAMA.in_layer, *NORMS),
    {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
)
