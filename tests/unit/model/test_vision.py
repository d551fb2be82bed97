"""Shows that the tower's features are the hidden states of the encoder's feature layer, and nothing after it runs."""

import math
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionModel, Dinov2Model, PreTrainedModel, SiglipVisionModel

from megatron_sts.config import Architecture, VisionArchitecture
from megatron_sts.errors import ConfigError
from megatron_sts.model.vision import VisionTower, build_tower
from megatron_sts.parallel.device import prepare_device
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE

ENCODERS = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel, "dinov2": Dinov2Model}
WITH_CLASS_TOKEN = ("clip", "dinov2")


def sizes(family: str, feature_layer: int, feature_select: str | None = None) -> VisionArchitecture:
    return VisionArchitecture.model_validate(
        ARCHITECTURE["vision"]
        | {
            "family": family,
            "layers": 3,
            # Of DINOv2, whose positions for 3 x 3 patches are interpolated to 4 x 4.
            "pretrained_image_size": 42 if family == "dinov2" else None,
            "feature_layer": feature_layer,
            "feature_select": feature_select or ("default" if family in WITH_CLASS_TOKEN else "full"),
        }
    )


def make_encoder(vision: VisionArchitecture) -> PreTrainedModel:
    kind = ENCODERS[vision.family]
    ratio = vision.ffn_hidden_size // vision.hidden_size
    inner = {"mlp_ratio": ratio} if vision.family == "dinov2" else {"intermediate_size": vision.ffn_hidden_size}
    config = kind.config_class(
        hidden_size=vision.hidden_size,
        num_hidden_layers=vision.layers,
        num_attention_heads=vision.attention_heads,
        image_size=vision.pretrained_image_size or vision.image_size,
        patch_size=vision.patch_size,
        **inner,
    )
    torch.manual_seed(3)
    encoder = kind(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            # Fresh weights are so small that layers would hardly differ.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return encoder


def encoder_layers(encoder: PreTrainedModel) -> torch.nn.ModuleList:
    return next(
        module for name, module in encoder.named_modules() if name.endswith(("encoder.layers", "encoder.layer"))
    )


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("feature_layer", [-4, -3, -2, -1, 0, 1, 2, 3])
@pytest.mark.parametrize("family", list(ENCODERS))
def test_features_are_the_hidden_states_of_the_feature_layer(family, feature_layer, pixels):
    vision = sizes(family, feature_layer)
    encoder = make_encoder(vision)
    with torch.no_grad():
        expected = encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[feature_layer]
        features = VisionTower(encoder, vision)(pixels)
    assert torch.equal(features, expected[:, 1:] if family in WITH_CLASS_TOKEN else expected)
    whole = Architecture.model_validate({"vision": vision.model_dump(), "language": ARCHITECTURE["language"]})
    assert features.shape == (2, whole.visual_tokens, vision.hidden_size)


def test_full_keeps_the_class_token(pixels):
    encoder = make_encoder(sizes("clip", -2))
    with torch.no_grad():
        dropped = VisionTower(encoder, sizes("clip", -2))(pixels)
    encoder = make_encoder(sizes("clip", -2))
    with torch.no_grad():
        full = VisionTower(encoder, sizes("clip", -2, "full"))(pixels)
    assert full.shape[1] == dropped.shape[1] + 1 == 17
    assert torch.equal(full[:, 1:], dropped)


@pytest.mark.parametrize("family", list(ENCODERS))
def test_layers_after_the_feature_layer_never_run(family, pixels):
    vision = sizes(family, -2)
    encoder = make_encoder(vision)
    tower = VisionTower(encoder, vision)
    with torch.no_grad():
        expected = tower(pixels)
        unused = encoder_layers(encoder)[-1]
        for parameter in unused.parameters():
            parameter.fill_(math.nan)
        ran = []
        unused.register_forward_pre_hook(lambda *_: ran.append(True))
        assert torch.equal(tower(pixels), expected)
        assert not ran


@pytest.mark.parametrize("family", list(ENCODERS))
def test_what_is_never_run_is_not_trained_and_all_else_is(family, pixels):
    vision = sizes(family, -2)
    tower = VisionTower(make_encoder(vision).train(), vision)
    tower.freeze_unused()
    tower(pixels).square().sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


def _built(vision: VisionArchitecture, directory: Path | None, seed: int = 0) -> dict[str, torch.Tensor]:
    prepare_device()
    tower = build_tower(vision, directory, torch.float32, seed)
    assert not tower.encoder.training
    return {name: value.numpy() for name, value in tower.encoder.state_dict().items()}


@pytest.mark.parametrize("family", list(ENCODERS))
def test_tower_of_a_directory_has_its_weights(tmp_path, family):
    vision = sizes(family, -2)
    encoder = make_encoder(vision)
    encoder.save_pretrained(tmp_path)
    (built,) = run_ranks(1, _built, vision, tmp_path)
    saved = encoder.state_dict()
    assert built.keys() == {name for name in saved if ".head." not in name and not name.startswith("head.")}
    for name, value in built.items():
        assert torch.equal(torch.from_numpy(value), saved[name])


def test_fresh_tower_follows_the_seed():
    vision = sizes("siglip", -1)
    (one,), (again,), (other,) = (run_ranks(1, _built, vision, None, seed) for seed in (1, 1, 2))
    assert all((one[name] == again[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def test_directory_of_another_size_is_refused(tmp_path):
    make_encoder(sizes("clip", -2)).save_pretrained(tmp_path)
    other = sizes("clip", -2).model_copy(update={"hidden_size": 32})
    with pytest.raises(ConfigError, match=r"config\.json has hidden_size 16, but model\.architecture.* has 32"):
        build_tower(other, tmp_path, torch.float32, 0)
