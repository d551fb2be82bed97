"""The vision tower: any Hugging Face vision encoder, run only up to the feature layer that is used."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from megatron_sts.config import VisionArchitecture
from megatron_sts.errors import ConfigError
from megatron_sts.model.encoder_config import (
    ENCODER_CONFIGS,
    EncoderConfig,
    encoder_config,
    encoder_sizes,
    without_pooling_head,
)

# What CLIP, SigLIP and DINOv2 have behind their last layer.
_AFTER_THE_LAYERS = ("post_layernorm", "head", "layernorm")
# What DINOv2 puts in place of hidden patches in its own pretraining.
_MASK_TOKEN = "mask_token"


class _FeaturesReady(Exception):
    """Carries the features out of the encoder, past the layers that nobody reads."""

    def __init__(self, features: Tensor):
        self.features = features


class VisionTower(torch.nn.Module):
    """A vision encoder whose features are the output of its layer number `used_layers`.

    Shapes: n images, v visual tokens, w tower width.
    """

    def __init__(self, encoder: PreTrainedModel, vision: VisionArchitecture):
        super().__init__()
        self.encoder = encoder
        self.image_shape = (vision.image_size, vision.image_size)
        self._drop_class_token = vision.feature_select == "default"
        self._used_layers = vision.used_layers
        layers = _layers(encoder)
        if vision.used_layers == 0:
            layers[0].register_forward_pre_hook(self._stop_before, with_kwargs=True)
        else:
            layers[vision.used_layers - 1].register_forward_hook(self._stop)

    def freeze_unused(self) -> None:
        """Leave what lies behind the feature layer untrained: it gets no gradient, and weight decay would move it."""
        for layer in _layers(self.encoder)[self._used_layers :]:
            layer.requires_grad_(False)
        for name, part in self.encoder.named_modules():
            if name.rpartition(".")[2] in _AFTER_THE_LAYERS:
                part.requires_grad_(False)
        for name, parameter in self.encoder.named_parameters():
            if name.rpartition(".")[2] == _MASK_TOKEN:
                parameter.requires_grad_(False)

    @staticmethod
    def _stop(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        raise _FeaturesReady(output if isinstance(output, Tensor) else output[0])

    @staticmethod
    def _stop_before(module: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise _FeaturesReady(inputs[0] if inputs else named["hidden_states"])

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [n, 3, H, W] -> features [n, v, w]."""
        try:
            self.encoder(pixel_values=pixels)
        except _FeaturesReady as ready:
            return ready.features[:, 1:] if self._drop_class_token else ready.features
        raise AssertionError("the encoder ended before its feature layer")


def _layers(encoder: PreTrainedModel) -> torch.nn.ModuleList:
    stacks = [module for name, module in encoder.named_modules() if name.endswith(("encoder.layers", "encoder.layer"))]
    assert len(stacks) == 1 and isinstance(stacks[0], torch.nn.ModuleList)
    return stacks[0]


def build_tower(
    vision: VisionArchitecture, directory: Path | None, dtype: torch.dtype, seed: int, read_weights: bool = True
) -> VisionTower:
    """The tower with the weights of a Hugging Face directory, or freshly drawn from the seed without one.

    Without `read_weights` the directory gives the configuration alone: the weights come from a checkpoint.
    Raises ConfigError where the directory has no weights, or other sizes than the architecture.
    """
    config = encoder_config(vision) if directory is None else _read_encoder_config(vision, directory)
    if directory is None or not read_weights:
        # The seed's draws are the CPU's. For nothing, 300 million numbers would take it seconds.
        device = torch.device("cpu" if read_weights else torch.cuda.current_device())
        with torch.random.fork_rng(devices=[]), device:
            torch.manual_seed(seed)
            encoder = AutoModel.from_config(config)
    else:
        try:
            encoder = AutoModel.from_pretrained(
                directory, config=config, trust_remote_code=False, use_safetensors=True, local_files_only=True
            )
        except OSError as error:
            raise ConfigError(
                f"model.vision {directory} has no weights that can be read ({error}); give a directory with "
                "safetensors, or model.init, a checkpoint that holds the tower"
            ) from error
    return VisionTower(encoder.to(device=torch.cuda.current_device(), dtype=dtype).eval(), vision)


def _read_encoder_config(vision: VisionArchitecture, directory: Path) -> EncoderConfig:
    if not (directory / "config.json").is_file():
        # transformers would quietly take its default sizes.
        raise ConfigError(f"model.vision {directory} has no config.json; give a Hugging Face vision encoder directory")
    found = ENCODER_CONFIGS[vision.family].from_pretrained(directory, local_files_only=True)
    for name, expected in encoder_sizes(vision).items():
        if getattr(found, name) != expected:
            raise ConfigError(
                f"{directory / 'config.json'} has {name} {getattr(found, name)}, but model.architecture's vision tower "
                f"has {expected}; make the architecture agree with the tower"
            )
    # The attention-pooling head is never used, and a checkpoint without it stays loadable.
    return without_pooling_head(found)
