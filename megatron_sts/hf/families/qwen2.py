"""Qwen2 and Qwen2.5: Llama's tensors, and biases of query, key and value."""

from transformers import Qwen2Config

from megatron_sts.hf.families.fused import merge_qkv, split_qkv
from megatron_sts.hf.families.llama import LLAMA
from megatron_sts.hf.families.table import LanguageFamily, Rule

QKV_BIAS = Rule(
    "self_attention.linear_qkv.bias",
    ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    lambda language: (language.query_key_value_rows,),
    merge_qkv,
    split_qkv,
)

QWEN2 = LanguageFamily(Qwen2Config, (*LLAMA.in_layer, QKV_BIAS), {"hidden_act": "silu", "use_sliding_window": False})
