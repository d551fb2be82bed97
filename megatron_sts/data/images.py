"""From an image file to the pixels the vision tower takes."""

import struct
import zlib
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import AutoImageProcessor, CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor

from megatron_sts.errors import ConfigError, DataError

# What Pillow's decoders raise on damaged files; most of it is not documented as such.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def load_image_processor(directory: Path | None, family: str, image_size: int) -> BaseImageProcessor:
    """The image processor of a Hugging Face vision encoder, on Pillow (no torchvision needed).

    Without a directory: the family's own processing at `image_size`.

    Raises:
        ConfigError: `preprocessor_config.json` is missing or unreadable, or makes pictures of another size.
    """
    if directory is None:
        if family == "clip":
            crop = {"height": image_size, "width": image_size}
            return CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=crop)
        return SiglipImageProcessorPil(size={"height": image_size, "width": image_size})

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
            f"model.vision: {file} cannot be used ({error}); give the preprocessor_config.json of a CLIP or "
            "SigLIP vision encoder"
        ) from error
    if shape != (3, image_size, image_size):
        raise ConfigError(
            f"model.vision: {file} makes pictures of shape {list(shape)}, the architecture's "
            f"vision.image_size is {image_size}; make the two agree"
        )
    return processor


class ImageReader:
    """Reads the pictures of one folder.

    Args:
        image_processor: what `load_image_processor` returns.
        root: the image folder; nothing outside it is read, not even through a symbolic link.
        max_pixels: pictures with more pixels are refused before they are decoded.
    """

    def __init__(self, image_processor: BaseImageProcessor, root: Path, max_pixels: int = 8192 * 8192) -> None:
        self._image_processor = image_processor
        self._root = root.resolve()
        self._max_pixels = max_pixels

    def read(self, relative_path: str) -> Tensor:
        """The processed picture, float32 [3, H, W].

        Raises:
            DataError: the file is outside the folder, missing, damaged, too large or not a picture.
        """
        picture = self._decode(resolve_image(self._root, relative_path))
        pixels: Tensor = self._image_processor(picture, return_tensors="pt")["pixel_values"][0]
        return pixels.to(torch.float32).contiguous()

    def _decode(self, file: Path) -> Image.Image:
        try:
            with Image.open(file) as picture:
                width, height = picture.size
                if width * height > self._max_pixels:
                    raise DataError(
                        f"{file}: found {width} x {height} pixels, more than {self._max_pixels}; "
                        "make the picture smaller"
                    )
                # Cameras store the way up beside the pixels.
                return ImageOps.exif_transpose(picture).convert("RGB")
        except FileNotFoundError:
            raise DataError(f"{file}: no such image; add it or remove the records that name it") from None
        except _DECODING_ERRORS as error:
            raise DataError(
                f"{file}: cannot be decoded ({error}); replace the file or remove the records that name it"
            ) from error


def resolve_image(root: Path, relative_path: str) -> Path:
    """The file behind `relative_path`, links followed. `root` must be resolved already.

    Raises:
        DataError: it lies outside `root`.
    """
    file = (root / relative_path).resolve()
    if not file.is_relative_to(root):
        raise DataError(
            f"image {relative_path!r}: leads to {file}, outside the image folder {root}; "
            "move the file into the folder or set data.images to the folder that holds it"
        )
    return file
