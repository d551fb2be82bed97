"""The image processing of a vision encoder's directory, brought into a new one."""

from pathlib import Path

from transformers import AutoImageProcessor

from megatron_sts.config import VisionArchitecture
from megatron_sts.data import load_image_processor
from megatron_sts.errors import ConversionError
from megatron_sts.hf.report import TensorReport

_FILES = ("preprocessor_config.json", "processor_config.json")


def copy_image_processor(source: Path, target: Path, vision: VisionArchitecture, report: TensorReport) -> None:
    """Write the source's image processing into `target`; where it has none, the family's own, with a warning.

    Raises ConversionError or ConfigError where it cannot be used, or makes pictures of another size.
    """
    if any((source / name).is_file() for name in _FILES):
        try:
            processor = AutoImageProcessor.from_pretrained(
                source, backend="pil", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
            raise ConversionError(f"{source}: its image processor cannot be used ({error}); correct it") from error
    else:
        report.warnings.append(
            f"{source} has no {' or '.join(_FILES)}: pictures will be processed as {vision.family} does by default"
        )
        processor = load_image_processor(None, vision.family, vision.image_size)
    processor.save_pretrained(target)
    load_image_processor(target, vision.family, vision.image_size)
