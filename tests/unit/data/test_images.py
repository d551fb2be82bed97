"""Shows that pictures come out as the vision encoder's processor makes them; bad files are named."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from megatron_sts.data import ImageReader, load_image_processor
from megatron_sts.errors import ConfigError


@pytest.fixture
def reader(image_folder: Path) -> ImageReader:
    return ImageReader(load_image_processor(None, "siglip", 8), image_folder)


def test_a_picture_is_scaled_and_normalized(reader: ImageReader) -> None:
    pixels = reader.read("2.png")
    assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    # SigLIP maps 0 .. 255 to -1 .. 1; the picture is (60, 0, 255).
    expected = torch.tensor([60 / 127.5 - 1, -1.0, 1.0]).view(3, 1, 1).expand(3, 8, 8)
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_each_family_has_a_processing_of_its_own(
    family: Literal["clip", "siglip", "dinov2"], image_folder: Path
) -> None:
    Image.new("RGB", (40, 20), (255, 255, 255)).save(image_folder / "wide.png")
    pixels = ImageReader(load_image_processor(None, family, 16), image_folder).read("wide.png")
    assert pixels.shape == (3, 16, 16)
    white = {"siglip": 1.0, "clip": (1 - 0.48145466) / 0.26862954, "dinov2": (1 - 0.485) / 0.229}[family]
    assert pixels[0, 8, 8].item() == pytest.approx(white, abs=1e-5)


CLIP_CONFIG = {
    "crop_size": 16,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
    "resample": 3,
    "size": 16,
}
CLIP_CONFIG_TODAY = CLIP_CONFIG | {
    "crop_size": {"height": 16, "width": 16},
    "size": {"shortest_edge": 16},
    "image_processor_type": "CLIPImageProcessor",
}


@pytest.mark.parametrize("config", [CLIP_CONFIG, CLIP_CONFIG_TODAY], ids=["published with CLIP", "today"])
def test_a_clip_directory_is_honoured(config: dict[str, object], tmp_path: Path, image_folder: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    reader = ImageReader(load_image_processor(tmp_path, "clip", 16), image_folder)
    pixels = reader.read("0.png")
    assert pixels.shape == (3, 16, 16)
    # The picture is (0, 0, 255): (0 - 0.5) / 0.25 and (1 - 0.5) / 0.25.
    assert pixels[:, 0, 0].tolist() == pytest.approx([-2, -2, 2], abs=1e-5)


def test_a_saved_siglip_directory_is_honoured(tmp_path: Path, image_folder: Path) -> None:
    size = {"height": 12, "width": 12}
    SiglipImageProcessorPil(size=size, image_mean=[0.0] * 3, image_std=[1.0] * 3).save_pretrained(tmp_path)
    pixels = ImageReader(load_image_processor(tmp_path, "siglip", 12), image_folder).read("0.png")
    assert pixels.shape == (3, 12, 12)
    assert pixels[:, 0, 0].tolist() == pytest.approx([0, 0, 1], abs=1e-6)


def test_a_directory_without_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.vision: no .*preprocessor_config\.json"):
        load_image_processor(tmp_path, "clip", 16)


@pytest.mark.parametrize("content", ["{", "[]", '{"image_processor_type": "NoSuchProcessor"}'])
def test_a_damaged_processor_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"model\.vision: .*preprocessor_config\.json cannot be used"):
        load_image_processor(tmp_path, "clip", 16)


def test_a_processor_of_another_size_is_refused(tmp_path: Path) -> None:
    SiglipImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"shape \[3, 12, 12\].*image_size is 14; make the two agree"):
        load_image_processor(tmp_path, "siglip", 14)


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize("size", [(30, 17), (16, 31), (20, 20)])
def test_padding_makes_a_square_in_the_mean_colour_before_anything_else(
    family: Literal["clip", "siglip", "dinov2"], size: tuple[int, int], image_folder: Path
) -> None:
    width, height = size
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image_folder / "noise.png")
    plain = load_image_processor(None, family, 16)
    found = ImageReader(load_image_processor(None, family, 16, "pad"), image_folder).read("noise.png")
    # By hand, as LLaVA-1.5 pads: the picture in the middle, rounded towards the start.
    mean = {"clip": (122, 116, 104), "siglip": (127, 127, 127), "dinov2": (123, 116, 103)}[family]
    side = max(size)
    square = Image.new("RGB", (side, side), mean)
    square.paste(Image.fromarray(noise), ((side - width) // 2, (side - height) // 2))
    expected = plain(square, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_padding_keeps_the_settings_of_a_directory(tmp_path: Path, image_folder: Path) -> None:
    size = {"height": 12, "width": 12}
    SiglipImageProcessorPil(size=size, image_mean=[0.2] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path)
    Image.new("RGB", (24, 2), (255, 255, 255)).save(image_folder / "wide.png")
    pixels = ImageReader(load_image_processor(tmp_path, "siglip", 12, "pad"), image_folder).read("wide.png")
    # Above and below the picture 0.2 of white, which the normalization makes 0; white itself is (1 - 0.2) / 0.5.
    assert pixels[:, 0, 0].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert pixels.max().item() <= 1.6 + 1e-6 and pixels.shape == (3, 12, 12)
