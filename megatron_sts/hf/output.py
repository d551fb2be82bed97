"""An output directory that appears when it is whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from megatron_sts.errors import ConversionError

_PARTIAL = ".partial"
# Configuration, tokenizer, metadata and the like.
_ROOM_BESIDE_TENSORS = 64 * 2**20


def check_output(output: Path, tensor_bytes: int) -> None:
    """Raise ConversionError where `output` exists, or its disk has too little room; before any work."""
    needed_bytes = tensor_bytes + _ROOM_BESIDE_TENSORS
    if output.exists():
        raise ConversionError(f"{output}: exists already; remove it or give another --output")
    there = next(parent for parent in output.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise ConversionError(
            f"{output}: needs {needed_bytes:,} bytes, but its disk has {free:,} left; make room or give another "
            "--output"
        )


@contextmanager
def written_beside(output: Path) -> Iterator[Path]:
    """A new directory `<output>.partial` that takes the place of `output` at the end, and is removed after an error.

    What the disk refuses is raised as ConversionError. What an earlier, killed conversion left there is removed first.
    """
    directory = output.with_name(output.name + _PARTIAL)
    try:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        yield directory
        # safetensors makes private files; a model is readable like any other new file.
        mask = os.umask(0)
        os.umask(mask)
        for file in directory.rglob("*"):
            file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
        directory.rename(output)
    except BaseException as error:
        shutil.rmtree(directory, ignore_errors=True)
        if not _is_of_the_disk(error):
            raise
        raise ConversionError(
            f"{output}: cannot be written ({type(error).__name__}: {error}); make room on the disk or give another "
            "--output. Nothing is left behind"
        ) from error


def _is_of_the_disk(error: BaseException) -> bool:
    """Whether an error means that writing failed; torch's file writer reports it as a RuntimeError."""
    of_torch = isinstance(error, RuntimeError) and "inline_container" in str(error)
    return isinstance(error, OSError | SafetensorError) or of_torch
