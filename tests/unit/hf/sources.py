"""Random tiny models of every tower and language family, made and written by transformers itself."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)

from megatron_sts.config import Recipe, read_run

# Prime, and more than the tokenizer has tokens.
VOCABULARY = 37
IMAGE_TOKEN_ID = 4
VISUAL_TOKENS = 4
_TOWER = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_LANGUAGE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def tower_config(tower: str) -> PreTrainedConfig:
    """clip with what its family does not default to; siglip2 at a fixed resolution is SigLIP's encoder.

    dinov2 with positions for 3 x 3 patches, which are interpolated to the 2 x 2 of the images.
    """
    if tower == "dinov2":
        sizes = {name: size for name, size in _TOWER.items() if name != "intermediate_size"}
        return Dinov2Config(**(sizes | {"image_size": 42}), mlp_ratio=2)
    if tower == "clip":
        return CLIPVisionConfig(**_TOWER, hidden_act="gelu", layer_norm_eps=1e-3)
    return SiglipVisionConfig(**_TOWER, vision_use_head=False)


def language_config(family: str) -> PreTrainedConfig:
    """Each family with what is its own; between them tied heads, both rotary scalings and a window."""
    if family == "llama":
        return LlamaConfig(**_LANGUAGE, rope_parameters=dict(_LLAMA3), rms_norm_eps=1e-5)
    if family == "mistral":
        linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
        return MistralConfig(**_LANGUAGE, rope_parameters=linear, sliding_window=100, head_dim=8)
    if family == "qwen2":
        return Qwen2Config(**_LANGUAGE, tie_word_embeddings=True)
    if family == "qwen3":
        return Qwen3Config(**(_LANGUAGE | {"num_hidden_layers": 4}), head_dim=12)
    if family == "gemma":
        return GemmaConfig(**(_LANGUAGE | {"num_key_value_heads": 1}), head_dim=12)
    if family == "phi":
        # Half of a head of eight dimensions turns.
        sizes = _LANGUAGE | {"num_key_value_heads": 4}
        return PhiConfig(**sizes, partial_rotary_factor=0.5, layer_norm_eps=1e-3)
    return Phi3Config(**_LANGUAGE, sliding_window=101)


def make_llava(tower: str, family: str) -> LlavaForConditionalGeneration:
    """A model whose norms and biases are random too: fresh ones are ones and zeros, which would hide an exchange."""
    language = language_config(family)
    config = LlavaConfig(
        vision_config=tower_config(tower),
        text_config=language,
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if tower in ("clip", "dinov2") else "full",
        tie_word_embeddings=language.tie_word_embeddings,
    )
    model = LlavaForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(sum(map(ord, tower + family)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def write_llava(model: LlavaForConditionalGeneration, directory: Path, tokenizer: Any) -> Path:
    """The model as transformers saves it, with its tokenizer, and for CLIP and DINOv2 its image processing."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    crop = {"height": 28, "width": 28}
    if isinstance(model.config.vision_config, Dinov2Config):
        BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(directory)
    if isinstance(model.config.vision_config, CLIPVisionConfig):
        CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=crop).save_pretrained(directory)
    return directory


def nothing(total: int) -> Any:
    """A progress bar that shows nothing."""
    return lambda done: None


def change_config(directory: Path, part: str | None = None, **values: Any) -> None:
    """Change config.json, or a part of it; None removes."""
    file = directory / "config.json"
    config = json.loads(file.read_text())
    target = config[part] if part else config
    for name, value in values.items():
        target.pop(name, None)
        if value is not None:
            target[name] = value
    file.write_text(json.dumps(config))


def recipe_of(init: Path, **language: Any) -> Recipe:
    """The recipe of an import, with other sizes of the language model."""
    recipe = read_run(init).recipe
    architecture = recipe.architecture
    sizes = architecture.language.model_copy(update=language)
    model = recipe.model.model_copy(update={"architecture": architecture.model_copy(update={"language": sizes})})
    return recipe.model_copy(update={"model": model})
