"""Mistral: Llama's tensors; its sliding window bounds the length of what is trained on."""

from transformers import MistralConfig

from megatron_sts.hf.families.llama import LLAMA
from megatron_sts.hf.families.table import LanguageFamily

MISTRAL = LanguageFamily(MistralConfig, LLAMA.in_layer, {"hidden_act": "silu"})
