"""The families of language models, one short file each: a mapping table for both directions.

fused.py   fused tensors, taken apart and put together
table.py   what a table is made of
"""

from megatron_sts.hf.families.gemma import GEMMA
from megatron_sts.hf.families.llama import LLAMA
from megatron_sts.hf.families.mistral import MISTRAL
from megatron_sts.hf.families.phi import PHI
from megatron_sts.hf.families.phi3 import PHI3
from megatron_sts.hf.families.qwen2 import QWEN2
from megatron_sts.hf.families.qwen3 import QWEN3
from megatron_sts.hf.families.table import FINAL_NORM, LAYERS, OUTPUT, OUTPUT_BIAS, LanguageFamily, Rule

LANGUAGES: dict[str, LanguageFamily] = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "phi3": PHI3,
    "phi": PHI,
    "gemma": GEMMA,
}

__all__ = ["FINAL_NORM", "LANGUAGES", "LAYERS", "OUTPUT", "OUTPUT_BIAS", "LanguageFamily", "Rule"]
