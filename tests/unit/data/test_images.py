"""Shows that pictures come out as the vision encoder's processor makes them; bad files are named."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil

from megatron_sts.data import ImageReader, load_image_processor
from megatron_sts.errors import ConfigError, DataError


@pytest.fixture
def reader(image_folder: Path) -> ImageReader:
    return ImageReader(load_image_processor(None, "siglip", 8), image_folder)


def test_a_picture_is_scaled_and_normalized(reader: ImageReader) -> None:
    pixels = reader.read("2.png")
    assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.float32 and pixels.is_contiguous()
    # SigLIP maps 0 .. 255 to -1 .. 1; the picture is (60, 0, 255).
    expected = torch.tensor([60 / 127.5 - 1, -1.0, 1.0]).view(3, 1, 1).expand(3, 8, 8)
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)


def test_grey_and_transparent_pictures_become_rgb(reader: ImageReader, image_folder: Path) -> None:
    Image.new("L", (9, 5), 255).save(image_folder / "grey.png")
    Image.new("RGBA", (5, 9), (255, 255, 255, 0)).save(image_folder / "clear.png")
    for name in ("grey.png", "clear.png"):
        torch.testing.assert_close(reader.read(name), torch.ones(3, 8, 8), atol=1e-6, rtol=0)


def test_a_picture_is_turned_as_its_camera_says(reader: ImageReader, image_folder: Path) -> None:
    picture = Image.new("RGB", (8, 8), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(image_folder / "turned.png", exif=exif)
    pixels = reader.read("turned.png")[0]
    # Orientation 6: to be shown turned by 90 degrees clockwise, which puts the white top on the right.
    assert (pixels[:, :4] < -0.9).all() and (pixels[:, 4:] > 0.9).all()


def test_a_missing_file_is_named(reader: ImageReader) -> None:
    with pytest.raises(DataError, match=r"none\.png: no such image; add it or remove"):
        reader.read("none.png")


def test_a_truncated_file_is_named(reader: ImageReader, image_folder: Path) -> None:
    noise = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.numpy())
    for name in ("cut.png", "cut.jpg"):
        picture.save(image_folder / name)
        whole = (image_folder / name).read_bytes()
        (image_folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=rf"{name}: cannot be decoded .*; replace the file"):
            reader.read(name)


def test_what_is_no_picture_is_named(reader: ImageReader, image_folder: Path) -> None:
    (image_folder / "text.png").write_text("not a picture")
    (image_folder / "folder.png").mkdir()
    for name in ("text.png", "folder.png"):
        with pytest.raises(DataError, match=f"{name}: cannot be decoded"):
            reader.read(name)


def test_too_many_pixels_are_refused_before_decoding(image_folder: Path) -> None:
    reader = ImageReader(load_image_processor(None, "siglip", 8), image_folder, max_pixels=63)
    with pytest.raises(DataError, match=r"0\.png: found 8 x 8 pixels, more than 63; make the picture smaller"):
        reader.read("0.png")
    bound = Image.MAX_IMAGE_PIXELS
    assert bound is not None and bound > 63


def test_nothing_outside_the_folder_is_read(reader: ImageReader, image_folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (image_folder / "link.png").symlink_to(tmp_path / "outside.png")
    for path in ("../outside.png", str(tmp_path / "outside.png"), "link.png"):
        with pytest.raises(DataError, match=r"outside the image folder .*data\.images"):
            reader.read(path)


def test_a_folder_that_is_itself_a_link_is_fine(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(image_folder)
    reader = ImageReader(load_image_processor(None, "siglip", 8), tmp_path / "alias")
    assert reader.read("0.png").shape == (3, 8, 8)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_each_family_has_a_processing_of_its_own(family: Literal["clip", "siglip"], image_folder: Path) -> None:
    Image.new("RGB", (40, 20), (255, 255, 255)).save(image_folder / "wide.png")
    pixels = ImageReader(load_image_processor(None, family, 16), image_folder).read("wide.png")
    assert pixels.shape == (3, 16, 16)
    white = {"siglip": 1.0, "clip": (1 - 0.48145466) / 0.26862954}[family]
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
