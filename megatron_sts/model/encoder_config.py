"""The Hugging Face configuration of each family of vision encoders, from the sizes of the architecture."""

from typing import Any

from transformers import CLIPVisionConfig, Dinov2Config, SiglipVisionConfig

from megatron_sts.config import VisionArchitecture

EncoderConfig = CLIPVisionConfig | SiglipVisionConfig | Dinov2Config
ENCODER_CONFIGS: dict[str, type[CLIPVisionConfig] | type[SiglipVisionConfig] | type[Dinov2Config]] = {
    "clip": CLIPVisionConfig,
    "siglip": SiglipVisionConfig,
    "siglip2": SiglipVisionConfig,
    "dinov2": Dinov2Config,
}


def encoder_sizes(vision: VisionArchitecture) -> dict[str, Any]:
    """The sizes under the names of the family's configuration, where transformers would fill in its own."""
    sizes: dict[str, Any] = {
        "hidden_size": vision.hidden_size,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.attention_heads,
        "image_size": vision.position_image_size,
        "patch_size": vision.patch_size,
    }
    if vision.family == "dinov2":
        return sizes | {"mlp_ratio": vision.ffn_hidden_size // vision.hidden_size}
    return sizes | {"intermediate_size": vision.ffn_hidden_size}


def encoder_config(vision: VisionArchitecture) -> EncoderConfig:
    """The configuration of a fresh encoder of these sizes, without the parts that are never run."""
    config = ENCODER_CONFIGS[vision.family](**encoder_sizes(vision))
    if isinstance(config, Dinov2Config):
        # It stands for hidden patches in DINOv2's own pretraining. Published models have it, and keep it.
        config.use_mask_token = False
    return without_pooling_head(config)


def without_pooling_head(config: EncoderConfig) -> EncoderConfig:
    """The configuration without SigLIP's pooling head, which a LLaVA model does not run."""
    if isinstance(config, SiglipVisionConfig):
        config.vision_use_head = False
    return config
