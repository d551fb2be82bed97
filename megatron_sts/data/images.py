"""From an image file to the pixels the vision tower takes."""

from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    SiglipImageProcessorPil,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from megatron_sts.data.pictures import LARGEST_PIXELS, find_picture, read_picture
from megatron_sts.data.sample import Picture
from megatron_sts.errors import ConfigError

AspectRatio = Literal["square", "pad"]

# What an image processor does to a picture, under the names of its settings.
_STEPS = ("do_convert_rgb", "do_resize", "do_center_crop", "do_rescale", "do_normalize")
_SETTINGS = ("size", "default_to_square", "resample", "crop_size", "rescale_factor", "image_mean", "image_std")


def load_image_processor(
    directory: Path | None, family: str, image_size: int, aspect_ratio: AspectRatio = "square"
) -> BaseImageProcessor:
    """The image processor of a Hugging Face vision encoder, on Pillow (no torchvision needed).

    Without a directory: the family's own processing at `image_size`. With `aspect_ratio` pad: transformers' processor
    of LLaVA with the same settings, which pads a picture to a square in the mean colour first, as LLaVA-1.5 does.

    Raises:
        ConfigError: `preprocessor_config.json` is missing or unreadable, or makes pictures of another size.
    """
    processor = _default_processor(family, image_size) if directory is None else _read_processor(directory, image_size)
    return _padding(processor) if aspect_ratio == "pad" else processor


def _default_processor(family: str, image_size: int) -> BaseImageProcessor:
    crop = {"height": image_size, "width": image_size}
    if family == "dinov2":
        # As CLIP, without the border that DINOv2's own evaluation cuts off (224 out of 256 pixels): a question may be
        # about it.
        return BitImageProcessorPil(
            size={"shortest_edge": image_size},
            crop_size=crop,
            image_mean=IMAGENET_DEFAULT_MEAN,
            image_std=IMAGENET_DEFAULT_STD,
        )
    if family == "clip":
        return CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=crop)
    return SiglipImageProcessorPil(size={"height": image_size, "width": image_size})


def _read_processor(directory: Path, image_size: int) -> BaseImageProcessor:
    file = directory / "preprocessor_config.json"
    if not file.is_file():
        raise ConfigError(f"model.vision: no {file}; give the directory of a Hugging Face vision encoder")
    try:
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(
            directory, backend="pil", local_files_only=True, trust_remote_code=False
        )
        blank = processor(Image.new("RGB", (2 * image_size, image_size)), return_tensors="pt")
        shape = tuple(blank["pixel_values"].shape[1:])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise ConfigError(
            f"model.vision: {file} cannot be used ({error}); give the preprocessor_config.json of a CLIP, "
            "SigLIP or DINOv2 vision encoder"
        ) from error
    if shape != (3, image_size, image_size):
        raise ConfigError(
            f"model.vision: {file} makes pictures of shape {list(shape)}, the architecture's "
            f"vision.image_size is {image_size}; make the two agree"
        )
    return processor


def _padding(processor: BaseImageProcessor) -> BaseImageProcessor:
    """The same processing of a picture that is padded to a square before."""
    settings: dict[str, Any] = {name: getattr(processor, name, None) for name in _SETTINGS}
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= {name: bool(getattr(processor, name, False)) for name in _STEPS}
    return LlavaImageProcessorPil(**settings, do_pad=True)


class ImageReader:
    """Reads the pictures of one folder, or of shards.

    Args:
        image_processor: what `load_image_processor` returns.
        root: the image folder; nothing outside it is read, not even through a symbolic link. None: all are in shards.
        max_pixels: pictures with more pixels, padded where they will be, are refused before they are decoded.
        dtype: of what is read; that of the tower, which would cast it to that, makes it smaller on its way there.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor,
        root: Path | None,
        max_pixels: int = LARGEST_PIXELS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._dtype = dtype
        self._image_processor = image_processor
        self._root = None if root is None else root.resolve()
        self._max_pixels = max_pixels

    def blank(self) -> Tensor:
        """Zeros of the shape that `read` gives."""
        return torch.zeros_like(self._process(Image.new("RGB", (2, 2))))

    def read(self, picture: Picture) -> Tensor:
        """The processed picture, [3, H, W].

        Raises:
            DataError: see `find_picture` and `read_picture`.
        """
        pads = bool(getattr(self._image_processor, "do_pad", False))
        return self._process(read_picture(find_picture(self._root, picture), self._max_pixels, pads))

    def _process(self, picture: Image.Image) -> Tensor:
        pixels: Tensor = self._image_processor(picture, return_tensors="pt")["pixel_values"][0]
        return pixels.to(self._dtype).contiguous()
