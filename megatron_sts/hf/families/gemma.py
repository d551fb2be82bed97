"""Gemma, the first: Llama's tensors; its norms' weights are added to one on both sides."""

from transformers import GemmaConfig

from megatron_sts.hf.families.llama import LLAMA
from megatron_sts.hf.families.table import LanguageFamily

GEMMA = LanguageFamily(
    GemmaConfig,
    LLAMA.in_layer,
    {"hidden_act": "gelu_pytorch_tanh", "attention_bias": False, "use_bidirectional_attention": None},
)
