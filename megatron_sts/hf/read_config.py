"""The architecture that a Hugging Face directory's config.json describes; what cannot be trained is refused by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from transformers import AutoConfig, LlavaConfig, PreTrainedConfig

from megatron_sts.config import (
    CLASS_TOKEN_FAMILIES,
    Architecture,
    LanguageArchitecture,
    RotaryScaling,
    VisionArchitecture,
    architecture_problems,
)
from megatron_sts.errors import ConversionError
from megatron_sts.hf.families import LANGUAGES
from megatron_sts.model.encoder_config import EncoderConfig

Sizes = TypeVar("Sizes", bound=BaseModel)

CONFIG_FILE = "config.json"
# The model types of config.json: the whole model with its text encoder, or the vision encoder alone.
_VISION_FAMILY = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "dinov2": "dinov2",
}
_WITH_TEXT_ENCODER = ("clip", "siglip")
# Of a vision encoder's configuration, what no other value of can be run here.
_VISION_FIXED: dict[str, dict[str, Any]] = {"dinov2": {"use_swiglu_ffn": False, "qkv_bias": True}}
# transformers would fill these in with its defaults.
_VISION_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
_LANGUAGE_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# Contract: model/build.py, whose megatron-core has these built in; they are those of Llama 3.1 and 3.2.
LLAMA3_BOUNDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# The second-to-last layer, as LLaVA takes it.
_FEATURE_LAYER = -2


@dataclass(frozen=True, slots=True)
class LlavaSettings:
    """What the config.json of a LLaVA model says beside its parts' own configurations."""

    text: PreTrainedConfig
    vision: PreTrainedConfig
    image_token: int
    feature_layer: int
    feature_select: str
    tied: bool


def read_llava_config(directory: Path) -> LlavaSettings:
    """The configuration of a LlavaForConditionalGeneration directory; ConversionError for anything else."""
    values = _read_values(directory)
    where = directory / CONFIG_FILE
    if values["model_type"] != "llava" or "text_config" not in values or "vision_config" not in values:
        raise ConversionError(
            f"{where}: model_type is {values['model_type']!r}"
            f"{'' if 'text_config' in values else ', without text_config'}"
            f"{'' if 'vision_config' in values else ', without vision_config'}; give a LlavaForConditionalGeneration "
            "directory (the llava-hf models on the hub are), or --vision and --language"
        )
    config = _parse(directory)
    assert isinstance(config, LlavaConfig)
    _check_fixed(config, {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}, where)
    if not isinstance(config.vision_feature_layer, int):
        raise ConversionError(
            f"{where}: vision_feature_layer is {config.vision_feature_layer}; this project takes the features of one "
            "layer, so such a model cannot be converted"
        )
    text, vision = config.text_config, config.vision_config
    assert isinstance(text, PreTrainedConfig) and isinstance(vision, PreTrainedConfig)
    return LlavaSettings(
        text=text,
        vision=vision,
        image_token=config.image_token_index,
        feature_layer=config.vision_feature_layer,
        feature_select=config.vision_feature_select_strategy,
        tied=config.tie_word_embeddings,
    )


def read_language_config(directory: Path) -> PreTrainedConfig:
    """The configuration of a language model's directory; ConversionError names an unknown family or a missing field."""
    values = _read_values(directory)
    _check_language_family(values["model_type"], directory / CONFIG_FILE)
    _check_fields(values, _LANGUAGE_FIELDS, directory / CONFIG_FILE)
    return _parse(directory)


def read_vision_config(directory: Path) -> EncoderConfig:
    """The configuration of the vision encoder of a directory, which may hold a whole CLIP or SigLIP model."""
    values = _read_values(directory)
    where = directory / CONFIG_FILE
    family = _vision_family(values["model_type"], where)
    whole = values["model_type"] in _WITH_TEXT_ENCODER
    if whole and "vision_config" not in values:
        raise ConversionError(f"{where}: has no vision_config; copy or download it again")
    if not whole:
        _check_fields(values, (*_VISION_FIELDS, "mlp_ratio" if family == "dinov2" else "intermediate_size"), where)
    config = _parse(directory)
    found = config.vision_config if whole else config
    assert isinstance(found, EncoderConfig)
    return found


def language_architecture(config: PreTrainedConfig, where: Path, tied: bool | None = None) -> LanguageArchitecture:
    """The sizes of a language model. tied: of a LLaVA model that contains it; None: its own setting.

    Raises ConversionError, by name and with the value found, for what this project cannot train.
    """
    _check_language_family(config.model_type, where)
    family = LANGUAGES[config.model_type]
    _check_fixed(config, family.fixed, where)
    rotary: Mapping[str, Any] = config.rope_parameters or {}
    share = rotary.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    if share != 1.0 and config.model_type != "phi":
        raise _refused(
            where, "partial_rotary_factor", share, "the rotary embedding of this family turns whole heads here"
        )
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    sizes: dict[str, Any] = {
        "family": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "attention_heads": heads,
        "query_groups": config.num_key_value_heads,
        "attention_head_size": None if head_size * heads == config.hidden_size else head_size,
        "vocabulary_size": config.vocab_size,
        "rotary_base": rotary.get("rope_theta", 10000.0),
        "partial_rotary_factor": share,
        "rotary_scaling": _rotary_scaling(rotary, where),
        "norm_epsilon": getattr(config, family.norm_epsilon),
        "tied_embeddings": config.tie_word_embeddings if tied is None else tied,
        "maximum_positions": config.max_position_embeddings,
        "sliding_window": getattr(config, "sliding_window", None),
    }
    return _sizes(LanguageArchitecture, sizes, where)


def vision_architecture(
    config: PreTrainedConfig,
    where: Path,
    feature_layer: int = _FEATURE_LAYER,
    feature_select: str | None = None,
    processed_size: int | None = None,
) -> VisionArchitecture:
    """The sizes of a vision encoder.

    feature_select: None: the family's, without the class token. processed_size: side of the images that the
    directory's image processor makes, None without one; DINOv2 interpolates its position embeddings to it.
    """
    family = _vision_family(config.model_type, where)
    _check_fixed(config, _VISION_FIXED.get(family, {}), where)
    image_size, pretrained = config.image_size, None
    ffn_hidden_size = getattr(config, "intermediate_size", None)
    if family == "dinov2":
        ffn_hidden_size = config.hidden_size * config.mlp_ratio
        if processed_size is not None and processed_size != image_size:
            image_size, pretrained = processed_size, image_size
    sizes: dict[str, Any] = {
        "family": family,
        "image_size": image_size,
        "pretrained_image_size": pretrained,
        "patch_size": config.patch_size,
        "hidden_size": config.hidden_size,
        "layers": config.num_hidden_layers,
        "attention_heads": config.num_attention_heads,
        "ffn_hidden_size": ffn_hidden_size,
        "feature_layer": feature_layer,
        "feature_select": feature_select or ("default" if family in CLASS_TOKEN_FAMILIES else "full"),
    }
    return _sizes(VisionArchitecture, sizes, where)


def check_architecture(architecture: Architecture, where: Path) -> None:
    """Raise ConversionError for sizes that contradict each other."""
    problems = architecture_problems(architecture)
    if problems:
        raise ConversionError(f"{where} describes a model that cannot be: {'; '.join(problems)}")


def _sizes(kind: type[Sizes], values: dict[str, Any], where: Path) -> Sizes:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [f"{detail['loc'][0]} is {detail['input']!r} ({detail['msg']})" for detail in error.errors()]
        raise ConversionError(f"{where} describes a model that cannot be: {'; '.join(problems)}") from error


def _rotary_scaling(rotary: Mapping[str, Any], where: Path) -> RotaryScaling | None:
    kind = rotary.get("rope_type", "default")
    if kind == "default":
        return None
    if kind not in ("llama3", "linear"):
        raise _refused(where, "rope_scaling type", kind, "megatron-core has llama3 and linear scaling for these models")
    if kind == "llama3":
        for name, value in LLAMA3_BOUNDS.items():
            if rotary.get(name) != value:
                raise _refused(where, f"rope_scaling {name}", rotary.get(name), f"megatron-core has {value} built in")
    return RotaryScaling(kind=kind, factor=float(rotary["factor"]))


def _check_language_family(model_type: str, where: Path) -> None:
    if model_type not in LANGUAGES:
        raise _refused(where, "model_type", model_type, f"language models of {', '.join(LANGUAGES)} can be converted")


def _vision_family(model_type: str, where: Path) -> str:
    if model_type not in _VISION_FAMILY:
        why = "vision encoders of CLIP, SigLIP and SigLIP2 at a fixed resolution, and of DINOv2, can be converted"
        raise _refused(where, "model_type", model_type, why)
    return _VISION_FAMILY[model_type]


def _check_fixed(config: PreTrainedConfig, fixed: Mapping[str, Any], where: Path) -> None:
    for name, value in fixed.items():
        if getattr(config, name, value) != value:
            raise _refused(where, name, getattr(config, name), f"only {value!r} can be trained here")


def _check_fields(values: Mapping[str, Any], fields: tuple[str, ...], where: Path) -> None:
    missing = [field for field in fields if field not in values]
    if missing:
        raise ConversionError(f"{where}: has no {', '.join(missing)}; copy or download it again")


def _read_values(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values.get("model_type"), str):
            raise ValueError("it has no model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ConversionError(f"{file}: cannot be used ({error}); give a Hugging Face model directory") from error
    return dict(values)


def _parse(directory: Path) -> PreTrainedConfig:
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # transformers' own checks raise errors of many kinds, huggingface_hub's among them.
        raise ConversionError(f"{directory / CONFIG_FILE}: transformers cannot use it ({error}); correct it") from error
    return config


def _refused(where: Path, name: str, found: Any, why: str) -> ConversionError:
    return ConversionError(f"{where}: {name} is {found!r}; {why}, so this model cannot be converted")
