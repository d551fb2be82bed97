"""Phi-1.5 and Phi-2: attention and MLP behind one layer norm, a bias in every norm and linear layer, the head's too."""

from transformers import PhiConfig

from megatron_sts.config import LanguageArchitecture
from megatron_sts.hf.families.llama import QKV
from megatron_sts.hf.families.qwen2 import QKV_BIAS
from megatron_sts.hf.families.table import EMBEDDING, OUTPUT, OUTPUT_BIAS, LanguageFamily, Rule, Shape, hidden


def _inner(language: LanguageArchitecture) -> tuple[int, ...]:
    return (language.ffn_hidden_size,)


def _both(key: str, name: str, weight: Shape, bias: Shape) -> tuple[Rule, Rule]:
    """The rules of a module's weight and bias."""
    return Rule(f"{key}.weight", (f"{name}.weight",), weight), Rule(f"{key}.bias", (f"{name}.bias",), bias)


PHI = LanguageFamily(
    PhiConfig,
    (
        QKV,
        QKV_BIAS,
        Rule("self_attention.linear_qkv.layer_norm_weight", ("input_layernorm.weight",), hidden),
        Rule("self_attention.linear_qkv.layer_norm_bias", ("input_layernorm.bias",), hidden),
        *_both(
            "self_attention.linear_proj",
            "self_attn.dense",
            lambda language: (language.hidden_size, language.attention_heads * language.head_size),
            hidden,
        ),
        *_both("mlp.linear_fc1", "mlp.fc1", lambda language: (language.ffn_hidden_size, language.hidden_size), _inner),
        *_both("mlp.linear_fc2", "mlp.fc2", lambda language: (language.hidden_size, language.ffn_hidden_size), hidden),
    ),
    {"hidden_act": "gelu_new", "qk_layernorm": False},
    outside=(
        EMBEDDING,
        *_both("decoder.final_layernorm", "model.final_layernorm", hidden, hidden),
        OUTPUT,
        OUTPUT_BIAS,
    ),
    norm_epsilon="layer_norm_eps",
)
