"""From an image file, whatever is in it, to a picture in RGB: converted, or refused by name."""

import io
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from megatron_sts.data.embedded_image import EmbeddedImage
from megatron_sts.data.sample import Picture
from megatron_sts.errors import DataError, shown, shown_path
from megatron_sts.records import Member

ImageFile = Path | Member | EmbeddedImage
"""Where the bytes of an image file are."""

# Pillow has readers for some forty formats, and starts programs for a few of them.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST_PIXELS = 8192 * 8192
# A processor that scales the short side of a picture makes its long side this many times longer.
LARGEST_RATIO = 200

# What Pillow's decoders raise on damaged files; most of it is not documented as such.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def resolve_image(root: Path, relative_path: str) -> Path:
    """The file behind `relative_path`, links followed. `root` must be resolved already.

    Raises:
        DataError: it lies outside `root`, or links lead in a circle.
    """
    try:
        file = (root / relative_path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"image {shown(relative_path)}: cannot be followed ({shown_path(error)}); correct the path"
        ) from error
    if not file.is_relative_to(root):
        raise DataError(
            f"image {shown(relative_path)}: leads to {shown_path(file)}, outside the image folder {root}; "
            "move the file into the folder or set data.images to the folder that holds it"
        )
    return file


def find_picture(root: Path | None, picture: Picture) -> ImageFile:
    """The file of a picture: in its record or shard, or below the image folder `root`, which must be resolved already.

    Raises DataError where there is no folder, and as `resolve_image`.
    """
    if not isinstance(picture, str):
        return picture
    if root is None:
        raise DataError(f"image {shown(picture)}: no folder is given; give that of the images (data.images, --images)")
    return resolve_image(root, picture)


def check_is_file(file: ImageFile) -> None:
    """Raise DataError where there is no such file, or a folder, a pipe or a device, or nothing in it."""
    if isinstance(file, EmbeddedImage):
        return
    if isinstance(file, Member):
        if file.size == 0:
            raise DataError(f"{file}: is empty; pack it again with the picture, or without the record")
        return
    try:
        status = file.stat()
    except FileNotFoundError:
        raise DataError(f"{shown_path(file)}: no such image; add it or remove the records that name it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{shown_path(file)}: cannot be read ({error}); correct the path or its permissions") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{shown_path(file)}: found a folder, a pipe or a device; name an image file")
    if status.st_size == 0:
        raise DataError(f"{shown_path(file)}: is empty; replace the file or remove the records that name it")


def read_picture(file: ImageFile, max_pixels: int = LARGEST_PIXELS, pads: bool = False) -> Image.Image:
    """The picture of a file, in RGB.

    Turned as its camera says; of an animation the first frame; transparency is dropped, as Hugging Face's processors
    drop it; of 16 bits the upper 8.

    Args:
        file: links followed, see `find_picture`.
        max_pixels: a picture with more pixels is refused before it is decoded.
        pads: the picture will be padded to a square, whose pixels count.

    Raises:
        DataError: the file is no such thing, missing, empty, damaged, too large, too long, or of another format than
            FORMATS.
    """
    check_is_file(file)
    content = file if isinstance(file, Path) else io.BytesIO(file.read())
    try:
        with warnings.catch_warnings():
            # Of sizes, which are checked here, and of damage that Pillow repairs.
            warnings.simplefilter("ignore")
            with Image.open(content, formats=FORMATS) as picture:
                _check_size(file, picture.size, max_pixels, pads)
                return _in_rgb(file, picture.format, ImageOps.exif_transpose(picture))
    except Image.UnidentifiedImageError:
        raise DataError(
            f"{shown_path(file)}: cannot be decoded (no picture in one of the formats {', '.join(FORMATS)}); replace "
            "it or remove the records that name it"
        ) from None
    except _DECODING_ERRORS as error:
        raise DataError(
            f"{shown_path(file)}: cannot be decoded ({shown_path(error)}); replace it or remove the records that "
            "name it"
        ) from error


def _check_size(file: ImageFile, size: tuple[int, int], max_pixels: int, pads: bool) -> None:
    width, height = size
    short, long = sorted(size)
    if long * (long if pads else short) > max_pixels:
        padded = ", padded to a square" if pads and width != height else ""
        raise DataError(
            f"{shown_path(file)}: found {width} x {height} pixels{padded}, more than {max_pixels}; make the "
            "picture smaller"
        )
    if long > LARGEST_RATIO * short:
        raise DataError(
            f"{shown_path(file)}: found {width} x {height} pixels, one side more than {LARGEST_RATIO} times the other; "
            "cut the picture into parts"
        )


def _in_rgb(file: ImageFile, image_format: str | None, picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and image_format in ("PNG", "PPM")):
        # Pillow would take every value above 255 for white.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise DataError(
            f"{shown_path(file)}: found values of 32 bits, whose range is not known; save the picture with 8 bits "
            "a channel"
        )
    elif picture.mode == "P":
        # By way of RGBA, which knows every kind of transparent palette.
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
