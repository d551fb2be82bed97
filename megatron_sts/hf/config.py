"""The exported model's configuration, from the recipe's architecture and the vision encoder's own files."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedTokenizerBase,
    SiglipVisionConfig,
)

from megatron_sts.config import Architecture, LanguageArchitecture, VisionArchitecture
from megatron_sts.data import image_token_id, pad_token_id
from megatron_sts.errors import ConversionError

_VISION_CONFIGS: dict[str, type[CLIPVisionConfig] | type[SiglipVisionConfig]] = {
    "clip": CLIPVisionConfig,
    "siglip": SiglipVisionConfig,
}


def llava_config(
    architecture: Architecture, vision: Path | None, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> LlavaConfig:
    """The configuration of a LLaVA model of this architecture.

    Args:
        vision: the vision encoder's directory; None: its family's default at the architecture's sizes.
    Raises:
        ConversionError: the vision encoder's directory has other sizes than the architecture.
    """
    return LlavaConfig(
        vision_config=vision_config(architecture.vision, vision),
        text_config=_text_config(architecture.language, tokenizer),
        image_token_index=image_token_id(tokenizer),
        image_seq_length=architecture.visual_tokens,
        # Contract: megatron_sts.model's projector has two linear layers with biases and the exact GELU.
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        vision_feature_layer=architecture.vision.feature_layer,
        vision_feature_select_strategy=architecture.vision.feature_select,
        tie_word_embeddings=architecture.language.tied_embeddings,
        architectures=["LlavaForConditionalGeneration"],
        dtype=dtype,
    )


def vision_config(vision: VisionArchitecture, directory: Path | None) -> CLIPVisionConfig | SiglipVisionConfig:
    """The vision encoder's configuration, without the pooling head, which a LLaVA model does not run.

    Raises ConversionError where the directory's config.json is unreadable or has other sizes.
    """
    kind = _VISION_CONFIGS[vision.family]
    sizes: dict[str, Any] = {
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.ffn_hidden_size,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.attention_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }
    if directory is None:
        config = kind(**sizes)
    else:
        try:
            kind_found = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
            if kind_found not in (vision.family, kind.model_type):
                raise ValueError(f"it is a {kind_found} model")
            config = kind.from_pretrained(directory, local_files_only=True)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConversionError(
                f"{directory}: its config.json cannot be used ({error}); give the directory of a "
                f"{vision.family} vision encoder with --vision"
            ) from error
        differing = [
            f"{name} is {getattr(config, name)} instead of {value}"
            for name, value in sizes.items()
            if getattr(config, name) != value
        ]
        if differing:
            raise ConversionError(
                f"{directory / 'config.json'} is not the vision encoder of the checkpoint's architecture: "
                f"{', '.join(differing)}; give the right directory with --vision"
            )
    if isinstance(config, SiglipVisionConfig):
        config.vision_use_head = False
    return config


def _text_config(language: LanguageArchitecture, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    config = LlamaConfig(
        vocab_size=language.vocabulary_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.ffn_hidden_size,
        num_hidden_layers=language.layers,
        num_attention_heads=language.attention_heads,
        num_key_value_heads=language.query_groups,
        head_dim=language.hidden_size // language.attention_heads,
        hidden_act="silu",
        max_position_embeddings=language.maximum_positions,
        rms_norm_eps=language.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": language.rotary_base},
        tie_word_embeddings=language.tied_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_token_id(tokenizer),
    )
    # Releases of transformers before 5 look for the rotary base here, and would take 10000 without a word.
    config.rope_theta = language.rotary_base
    return config
