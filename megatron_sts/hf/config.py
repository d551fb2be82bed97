"""The exported model's configuration, from the recipe's architecture and the vision encoder's own files."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, PreTrainedConfig, PreTrainedTokenizerBase

from megatron_sts.config import Architecture, LanguageArchitecture, VisionArchitecture
from megatron_sts.data import image_token_id, pad_token_id
from megatron_sts.errors import ConversionError
from megatron_sts.hf.families import LANGUAGES
from megatron_sts.hf.read_config import LLAMA3_BOUNDS
from megatron_sts.model.encoder_config import (
    ENCODER_CONFIGS,
    EncoderConfig,
    encoder_config,
    encoder_sizes,
    without_pooling_head,
)


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


def vision_config(vision: VisionArchitecture, directory: Path | None) -> EncoderConfig:
    """The vision encoder's configuration, without the pooling head, which a LLaVA model does not run.

    Raises ConversionError where the directory's config.json is unreadable or has other sizes.
    """
    if directory is None:
        return encoder_config(vision)
    kind = ENCODER_CONFIGS[vision.family]
    try:
        kind_found = json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]
        if kind_found not in (kind.model_type, kind.model_type.removesuffix("_vision_model")):
            raise ValueError(f"it is a {kind_found} model")
        config = kind.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConversionError(
            f"{directory}: its config.json cannot be used ({error}); give the directory of a "
            f"{vision.family} vision encoder with --vision"
        ) from error
    differing = [
        f"{name} is {getattr(config, name)} instead of {value}"
        for name, value in encoder_sizes(vision).items()
        if getattr(config, name) != value
    ]
    if differing:
        raise ConversionError(
            f"{directory / 'config.json'} is not the vision encoder of the checkpoint's architecture: "
            f"{', '.join(differing)}; give the right directory with --vision"
        )
    return without_pooling_head(config)


def _text_config(language: LanguageArchitecture, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    rotary: dict[str, Any] = {"rope_type": "default"}
    if language.rotary_scaling is not None:
        rotary = {"rope_type": language.rotary_scaling.kind, "factor": language.rotary_scaling.factor}
        if language.rotary_scaling.kind == "llama3":
            rotary |= LLAMA3_BOUNDS
    family = LANGUAGES[language.family]
    of_family: dict[str, Any] = {family.norm_epsilon: language.norm_epsilon}
    if language.family in ("mistral", "phi3"):
        of_family["sliding_window"] = language.sliding_window
    if language.family not in ("phi", "phi3") or language.attention_head_size is not None:
        of_family["head_dim"] = language.head_size
    if language.family == "phi":
        rotary["partial_rotary_factor"] = language.partial_rotary_factor
    config = family.config(
        vocab_size=language.vocabulary_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.ffn_hidden_size,
        num_hidden_layers=language.layers,
        num_attention_heads=language.attention_heads,
        num_key_value_heads=language.query_groups,
        hidden_act=family.fixed["hidden_act"],
        max_position_embeddings=language.maximum_positions,
        rope_parameters=rotary | {"rope_theta": language.rotary_base},
        tie_word_embeddings=language.tied_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_token_id(tokenizer),
        **of_family,
    )
    # Releases of transformers before 5 look for the rotary base, its share and its scaling here, and would take
    # defaults without a word.
    config.rope_theta = language.rotary_base
    if language.family == "phi":
        config.partial_rotary_factor = language.partial_rotary_factor
    if language.rotary_scaling is not None:
        config.rope_scaling = rotary
    return config
