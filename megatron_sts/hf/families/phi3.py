"""Phi-3: Llama's tensors, query, key and value stacked in one, gate and up projection as megatron-core has them."""

from dataclasses import replace

from transformers import Phi3Config

from megatron_sts.hf.families.fused import alone, merge_stacked_qkv, same, split_stacked_qkv
from megatron_sts.hf.families.llama import GATE_UP, QKV, SAME
from megatron_sts.hf.families.table import LanguageFamily

PHI3 = LanguageFamily(
    Phi3Config,
    (
        replace(QKV, names=("self_attn.qkv_proj.weight",), merge=merge_stacked_qkv, split=split_stacked_qkv),
        replace(GATE_UP, names=("mlp.gate_up_proj.weight",), merge=same, split=alone),
        *SAME,
    ),
    {"hidden_act": "silu"},
)
