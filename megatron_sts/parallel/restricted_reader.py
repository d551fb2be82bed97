"""Reads torch_dist checkpoints without ever running code from them.

torch reads `.metadata`, and every object that is no tensor, by plain pickle. Here `.metadata` is read by an unpickler
that knows its records alone, and the objects of a checkpoint are looked at before megatron-core loads them.
"""

import importlib
import io
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, StorageMeta

from megatron_sts.errors import CheckpointError

METADATA_FILE = ".metadata"

READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    AssertionError,
    pickle.UnpicklingError,
)
"""What torch raises where a file is cut short or is none of its own."""


def check_free_of_code(checkpoint: Path) -> None:
    """Raise CheckpointError where loading a checkpoint would run code, or one of its objects cannot be read.

    The metadata has only its own records, and every object in the checkpoint is one that torch loads with
    `weights_only`: tensors and plain values.
    """
    metadata = RestrictedReader(checkpoint).read_metadata()
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, BytesStorageMetadata):
            continue
        try:
            place = metadata.storage_data[MetadataIndex(key)]
            file = (checkpoint / place.relative_path).resolve()
            if not file.is_relative_to(checkpoint.resolve()):
                raise ValueError(f"{place.relative_path} is outside the checkpoint")
            with file.open("rb") as stream:
                stream.seek(place.offset)
                torch.load(io.BytesIO(stream.read(place.length)), map_location="cpu", weights_only=True)
        except (*READ_ERRORS, AttributeError, TypeError) as error:
            # torch's own words on what to do about it are not for a user of checkpoints.
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{checkpoint}: the object {key} is refused, because loading it could run code, or it is damaged "
                f"({type(error).__name__}: {reason}); use another checkpoint"
            ) from error


class RestrictedReader(FileSystemReader):
    """A reader that never runs code from a checkpoint: torch reads `.metadata` by plain pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The checkpoint's metadata; CheckpointError where it is missing, damaged or would run code."""
        file = Path(self.path) / METADATA_FILE
        try:
            with file.open("rb") as stream:
                metadata = _MetadataUnpickler(stream).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"holds a {type(metadata).__name__}")
        except (*READ_ERRORS, IndexError, TypeError, AttributeError, ImportError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error}); use another checkpoint") from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the records of torch.distributed.checkpoint and of plain values, and nothing else."""

    _RECORDS = (
        "torch.distributed.checkpoint.metadata",
        "torch.distributed.checkpoint.planner",
        "torch.distributed.checkpoint.filesystem",
    )
    _PLAIN = frozenset(
        [
            ("torch", "Size"),
            ("torch", "device"),
            ("torch.serialization", "_get_layout"),
            ("collections", "OrderedDict"),
            ("pathlib", "PosixPath"),
            ("pathlib", "PurePosixPath"),
            ("pathlib._local", "PosixPath"),
            ("builtins", "set"),
        ]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._PLAIN:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in self._RECORDS and "." not in name:
            record = getattr(importlib.import_module(module), name, None)
            is_record = hasattr(record, "__dataclass_fields__") or (
                isinstance(record, type) and issubclass(record, Enum)
            )
            if is_record and record.__module__ == module:
                return record
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def _enum_member(of: Any, name: str) -> Enum:
    """All that `getattr` may do: Python before 3.11.4 pickles a member of an Enum as getattr(class, name)."""
    if not (isinstance(of, type) and issubclass(of, Enum)) or name not in of.__members__:
        raise pickle.UnpicklingError(f"refused to load {name} of {of}")
    return of.__members__[name]
