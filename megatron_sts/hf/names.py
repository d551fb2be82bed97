"""Which tensors an exported model has, under three sets of names.

The checkpoint's, the file's (the layout of the LLaVA checkpoints on the hub, which old and new releases of
transformers read) and those of LlavaForConditionalGeneration in memory:

    vision.*             vision_tower.vision_model.*     model.vision_tower.*
    projector.*          multi_modal_projector.*         model.multi_modal_projector.*
    embedding, decoder   language_model.model.*          model.language_model.*
    output_layer         language_model.lm_head.weight   lm_head.weight
"""

from collections.abc import Mapping

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from megatron_sts.config import LanguageArchitecture
from megatron_sts.hf.llama import check_tensors, language_shapes

VISION = "vision."
PROJECTOR = "projector."
_FILE_PREFIX = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
# Releases of transformers differ in whether the encoder's own names begin with this.
_OPTIONAL_VISION_PREFIX = "vision_model."
# Never run by a LLaVA model, and not a part of it: SigLIP's pooling head, a buffer of older releases.
_UNUSED_VISION = ("head.", "embeddings.position_ids")


def model_shapes(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of the exported model, by its name in memory; a tied output layer is left out."""
    with torch.device("meta"):
        state = LlavaForConditionalGeneration(config).state_dict()
    tied = config.tie_word_embeddings
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not (tied and name == "lm_head.weight")}


def file_name(model_name: str) -> str:
    """The name in the safetensors file of a parameter of LlavaForConditionalGeneration."""
    for prefix, replacement in _FILE_PREFIX.items():
        if model_name.startswith(prefix):
            return replacement + model_name.removeprefix(prefix)
    raise AssertionError(f"{model_name} is no part of a LLaVA model")


def vision_name(checkpoint_key: str) -> str:
    """The vision encoder's own name of a checkpoint tensor `vision.*`."""
    return checkpoint_key.removeprefix(VISION).removeprefix(_OPTIONAL_VISION_PREFIX)


def is_unused(checkpoint_key: str) -> bool:
    """Whether a checkpoint tensor is a part of the vision encoder that a LLaVA model does not have."""
    return checkpoint_key.startswith(VISION) and vision_name(checkpoint_key).startswith(_UNUSED_VISION)


def check_checkpoint(found: Mapping[str, tuple[int, ...]], config: LlavaConfig, language: LanguageArchitecture) -> None:
    """Raise ConversionError unless the checkpoint has exactly the tensors of the model."""
    expected = language_shapes(language)
    for name, shape in model_shapes(config).items():
        for prefix, key in (("model.vision_tower.", VISION), ("model.multi_modal_projector.", PROJECTOR)):
            if name.startswith(prefix):
                expected[key + name.removeprefix(prefix)] = shape
    given = {
        VISION + vision_name(key) if key.startswith(VISION) else key: shape
        for key, shape in found.items()
        if not is_unused(key)
    }
    check_tensors(given, expected, "checkpoint's")
