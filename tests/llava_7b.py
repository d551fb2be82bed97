"""The sizes of LLaVA-1.5-7B, as a recipe has them."""

from typing import Any

LLAVA_7B: dict[str, Any] = {
    "vision": {
        "family": "clip",
        "image_size": 336,
        "patch_size": 14,
        "hidden_size": 1024,
        "layers": 24,
        "attention_heads": 16,
        "ffn_hidden_size": 4096,
    },
    "language": {
        "family": "llama",
        "layers": 32,
        "hidden_size": 4096,
        "ffn_hidden_size": 11008,
        "attention_heads": 32,
        "query_groups": 32,
        "vocabulary_size": 32000,
    },
}
