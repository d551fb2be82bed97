"""Distributed checkpoints are read without running what they hold: `.metadata` and stored objects are pickles."""

import importlib
import io
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from megatron_sts.errors import CheckpointError
from megatron_sts.parallel.fp8_state import check_fp8_state, enum_member

METADATA_FILE = ".metadata"
COMMON_FILE = "common.pt"
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
_BYTE_TENSOR = torch.uint8


def check_holds_no_code(checkpoint: Path) -> None:
    """Raise CheckpointError, naming the file, where a pickle in a distributed checkpoint is more than plain values.

    megatron-core and torch read `.metadata` and stored objects by plain pickle. Whatever passes here, by readers that
    know plain values and tensors alone, cannot run anything there.
    """
    reader = RestrictedReader(checkpoint)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    keys = {key for key, entry in metadata.state_dict_metadata.items() if isinstance(entry, BytesStorageMetadata)}
    nowhere = torch.Size([0])
    for index, info in (metadata.storage_data or {}).items():
        if index.fqn not in keys:
            continue
        item = ReadItem(LoadItemType.BYTE_IO, index, nowhere, index, nowhere, nowhere)
        try:
            reader.read_data(LoadPlan([item]), _ObjectChecker()).wait()
        except (*READ_ERRORS, TypeError, AttributeError, ImportError) as error:
            raise _refused(checkpoint / info.relative_path, f"{index.fqn}: {error}") from error
    try:
        torch.load(checkpoint / COMMON_FILE, map_location="cpu", weights_only=True)
    except (*READ_ERRORS, TypeError, AttributeError) as error:
        raise _refused(checkpoint / COMMON_FILE, str(error)) from error


def _refused(file: Path, reason: str) -> CheckpointError:
    first_line = reason.strip().partition("\n")[0]
    return CheckpointError(f"{file}: missing, damaged or more than plain values ({first_line}); use another checkpoint")


class _ObjectChecker(DefaultLoadPlanner):
    """Reads stored objects by restricted loaders, and keeps none."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        found = torch.load(value, map_location="cpu", weights_only=True)
        # Transformer Engine keeps FP8 state as a pickle in a tensor of bytes, and reads that by plain pickle.
        if isinstance(found, torch.Tensor) and found.dtype == _BYTE_TENSOR and found.numel() > 0:
            check_fp8_state(found.numpy().tobytes())


class RestrictedReader(FileSystemReader):
    """A reader that never runs code from a checkpoint: torch reads `.metadata` by plain pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """`.metadata`; CheckpointError where it is damaged, holds more than records, or names files elsewhere."""
        file = Path(self.path) / METADATA_FILE
        try:
            with file.open("rb") as stream:
                metadata = _MetadataUnpickler(stream).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"holds a {type(metadata).__name__}")
        except (*READ_ERRORS, IndexError, TypeError, AttributeError, ImportError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error}); use another checkpoint") from error
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        for info in (metadata.storage_data or {}).values():
            if Path(info.relative_path).name != info.relative_path:
                raise CheckpointError(f"{file}: refers to {info.relative_path!r}, which is not in the checkpoint")
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
            return enum_member
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
