"""The image processing of a vision encoder's directory, brought into a new one."""

from pathlib import Path

from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from megatron_sts.config import VisionArchitecture
from megatron_sts.data import load_image_processor
from megatron_sts.errors import ConversionError
from megatron_sts.hf.report import TensorReport

_FILES = ("preprocessor_config.json", "processor_config.json")


def processed_size(source: Path) -> int | None:
    """Side of the square images that a directory's image processing makes; None where it has none, or others.

    Raises ConversionError where it cannot be used.
    """
    if not any((source / name).is_file() for name in _FILES):
        return None
    pixels = _read(source)(Image.new("RGB", (16, 16)), return_tensors="pt")["pixel_values"][0]
    height, width = pixels.shape[1:]
    return int(height) if height == width else None


def copy_image_processor(source: Path, target: Path, vision: VisionArchitecture, report: TensorReport) -> None:
    """Write the source's image processing into `target`; where it has none, the family's own, with a warning.

    A DINOv2 that is to take images of another size gets its family's own too, as theirs cuts a border off that is made
    for one size.
    Raises ConversionError or ConfigError where it cannot be used, or makes pictures of another size.
    """
    size = processed_size(source) if vision.family == "dinov2" else None
    if size not in (None, vision.image_size):
        report.warnings.append(
            f"{source} makes images of {size} px, the recipe asks for {vision.image_size}: they will be processed as "
            f"{vision.family} does by default"
        )
        processor = load_image_processor(None, vision.family, vision.image_size)
    elif any((source / name).is_file() for name in _FILES):
        processor = _read(source)
    else:
        report.warnings.append(
            f"{source} has no {' or '.join(_FILES)}: pictures will be processed as {vision.family} does by default"
        )
        processor = load_image_processor(None, vision.family, vision.image_size)
    processor.save_pretrained(target)
    load_image_processor(target, vision.family, vision.image_size)


def _read(source: Path) -> BaseImageProcessor:
    try:
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(
            source, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise ConversionError(f"{source}: its image processor cannot be used ({error}); correct it") from error
    return processor
