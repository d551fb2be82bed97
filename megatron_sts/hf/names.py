"""What the tensors of a LLaVA model are called, in a checkpoint and in Hugging Face files.

A model has three parts. Their tensors go by the names of the part's own class; files put a prefix before them:

    part        own names           in a checkpoint      in an exported file           in other files
    vision      embeddings.*        vision.*             vision_tower.vision_model.*   model.vision_tower.*
      (dinov2)  embeddings.*        vision.*             vision_tower.*                model.vision_tower.*
    projector   linear_1.*          projector.*          multi_modal_projector.*       model.multi_modal_projector.*
    language    model.*, lm_head.*  by the family table  language_model.*              model.language_model.*, lm_head.*

The file's layout is that of the LLaVA checkpoints on the hub, which old and new releases of transformers read.
"""

import re

import torch
from transformers import AutoModel, PreTrainedConfig

from megatron_sts.config import VisionArchitecture

VISION = "vision."
PROJECTOR = "projector."
FILE_PREFIX = {
    "projector": "multi_modal_projector.",
    "language": "language_model.",
}
# Tried in order; what follows the prefix is put behind the own name's beginning.
_PREFIXES = (
    ("model.vision_tower.", "vision", ""),
    ("vision_tower.", "vision", ""),
    ("model.multi_modal_projector.", "projector", ""),
    ("multi_modal_projector.", "projector", ""),
    ("model.language_model.", "language", "model."),
    ("language_model.", "language", ""),
    ("lm_head.", "language", "lm_head."),
)
# Releases of transformers differ in whether a vision encoder's own names begin with this; DINOv2's never do.
_VISION_PREFIX = "vision_model."
# Releases of transformers also differ in what a DINOv2 model calls these; files go by the names on the right.
_DINOV2_ATTENTION = re.compile(r"(encoder\.layer\.\d+\.attention)\.([qkvo]_proj)\.")
_DINOV2_NAMES = {
    "q_proj": "attention.query",
    "k_proj": "attention.key",
    "v_proj": "attention.value",
    "o_proj": "output.dense",
}
_NEVER_RUN = ("post_layernorm.", "layernorm.", "embeddings.mask_token")
# In some files, in no model: buffers that are computed, and of a whole CLIP or SigLIP the parts beside the encoder.
_HARMLESS = re.compile(
    r"(.*\.)?rotary_emb\.inv_freq"
    r"|(.*\.)?embeddings\.position_ids"
    r"|text_model\..*|text_projection\.weight|visual_projection\.weight|logit_scale|logit_bias"
)
# SigLIP's pooling head, which a LLaVA model does not run and does not have.
_POOLING_HEAD = "head."


def part_of(name: str) -> tuple[str, str] | None:
    """The part that a tensor of a LLaVA file belongs to, and its own name there; None: it belongs to none."""
    for prefix, part, beginning in _PREFIXES:
        if name.startswith(prefix):
            own = beginning + name.removeprefix(prefix)
            return part, vision_name(own) if part == "vision" else own
    return None


def vision_name(name: str) -> str:
    """A vision encoder's own name, as this project writes it."""
    name = name.removeprefix(_VISION_PREFIX)
    return _DINOV2_ATTENTION.sub(lambda found: f"{found[1]}.{_DINOV2_NAMES[found[2]]}.", name)


def vision_file_name(name: str, vision: VisionArchitecture) -> str:
    """What a vision encoder's own name is in a LLaVA file."""
    return f"vision_tower.{'' if vision.family == 'dinov2' else _VISION_PREFIX}{name}"


def checkpoint_vision_name(key: str) -> str:
    """The vision encoder's own name of a checkpoint's tensor `vision.*`."""
    return vision_name(key.removeprefix(VISION))


def is_harmless(name: str) -> bool:
    """Whether a file's tensor can be left out: it is computed, or belongs to no part of a LLaVA model."""
    return _HARMLESS.fullmatch(name) is not None


def is_pooling_head(name: str) -> bool:
    """Whether a vision encoder's tensor belongs to SigLIP's pooling head."""
    return name.startswith(_POOLING_HEAD)


def vision_shapes(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a vision encoder, without a pooling head, by its checkpoint name.

    Behind `vision.` stands what this release of transformers calls it, which is what training looks for.
    """
    with torch.device("meta"):
        state = AutoModel.from_config(config).state_dict()
    named = {VISION + name: tuple(tensor.shape) for name, tensor in state.items()}
    return {key: shape for key, shape in named.items() if not is_pooling_head(checkpoint_vision_name(key))}


def projector_shapes(vision_width: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the projector by its checkpoint name."""
    return {
        f"{PROJECTOR}linear_1.weight": (hidden_size, vision_width),
        f"{PROJECTOR}linear_1.bias": (hidden_size,),
        f"{PROJECTOR}linear_2.weight": (hidden_size, hidden_size),
        f"{PROJECTOR}linear_2.bias": (hidden_size,),
    }


def runs(name: str, used_layers: int) -> bool:
    """Whether a vision encoder's tensor is ever run: not in the layers after the feature layer, nor the last norm."""
    layer = re.match(r"encoder\.layers?\.(\d+)\.", name)
    return not name.startswith(_NEVER_RUN) and (layer is None or int(layer[1]) < used_layers)
