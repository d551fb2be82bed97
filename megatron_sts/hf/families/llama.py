"""Llama 2 and 3, Vicuna: the table that the other families vary."""

from transformers import LlamaConfig

from megatron_sts.hf.families.fused import merge_gate_up, merge_qkv, split_gate_up, split_qkv
from megatron_sts.hf.families.table import LanguageFamily, Rule, hidden

QKV = Rule(
    "self_attention.linear_qkv.weight",
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    lambda language: (language.query_key_value_rows, language.hidden_size),
    merge_qkv,
    split_qkv,
)
GATE_UP = Rule(
    "mlp.linear_fc1.weight",
    ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    lambda language: (2 * language.ffn_hidden_size, language.hidden_size),
    merge_gate_up,
    split_gate_up,
)
SAME = (
    Rule("self_attention.linear_qkv.layer_norm_weight", ("input_layernorm.weight",), hidden),
    Rule(
        "self_attention.linear_proj.weight",
        ("self_attn.o_proj.weight",),
        lambda language: (language.hidden_size, language.attention_heads * language.head_size),
    ),
    Rule("mlp.linear_fc1.layer_norm_weight", ("post_attention_layernorm.weight",), hidden),
    Rule(
        "mlp.linear_fc2.weight",
        ("mlp.down_proj.weight",),
        lambda language: (language.hidden_size, language.ffn_hidden_size),
    ),
)

LLAMA = LanguageFamily(
    LlamaConfig, (QKV, GATE_UP, *SAME), {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
)
