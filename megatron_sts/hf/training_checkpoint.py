"""Reads a training checkpoint's tensors in one process, without a process group: any tensor, any layer."""

import importlib
import pickle
import re
from enum import Enum
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_sts.errors import CheckpointError

METADATA_FILE = ".metadata"
# What torch raises where a file is cut short or is none of its own.
_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    AssertionError,
    pickle.UnpicklingError,
)
_OPTIMIZER_KEY = re.compile(r"(chained_\d+\.)?optimizer\.")


class TensorReader:
    """The model's tensors in a torch_dist checkpoint; the optimiser's and whatever is no tensor are left out.

    Only what is asked for is read, so that a model larger than memory can be streamed.
    """

    def __init__(self, checkpoint: Path):
        """CheckpointError where the directory is no finished checkpoint."""
        if not (checkpoint / METADATA_FILE).is_file():
            raise CheckpointError(
                f"{checkpoint}: no {METADATA_FILE}, so it was never finished; use an earlier checkpoint"
            )
        self._checkpoint = checkpoint
        self._reader = _RestrictedReader(checkpoint)
        metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not _OPTIMIZER_KEY.match(key)
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and full shape of every tensor."""
        return {key: tuple(entry.size) for key, entry in self._tensors.items()}

    def dtype(self, key: str) -> torch.dtype:
        """The dtype a tensor is stored in."""
        return self._tensors[key].properties.dtype

    def read_layer(self, key: str, layer: int) -> Tensor:
        """The slice [layer] of a tensor's first dimension, without that dimension."""
        return self.read(key, slice(layer, layer + 1))[0]

    def read(self, key: str, rows: slice = slice(None)) -> Tensor:
        """A whole tensor, or some of it along its first dimension.

        Raises CheckpointError where a file of the checkpoint is missing, damaged or does not hold all of it.
        """
        entry = self._tensors[key]
        offsets, sizes = [0] * len(entry.size), list(entry.size)
        if sizes:
            start, stop, _ = rows.indices(sizes[0])
            offsets[0], sizes[0] = start, stop - start
        target = torch.empty(sizes, dtype=entry.properties.dtype)
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(key, entry, [chunk])
        if sum(prod(item.lengths) for item in items) != target.numel():
            raise CheckpointError(f"{self._checkpoint}: holds only a part of {key}; use another checkpoint")
        try:
            self._reader.read_data(LoadPlan(items), _SlicePlanner(target)).wait()
        except _READ_ERRORS as error:
            raise CheckpointError(
                f"{self._checkpoint}: {key} cannot be read ({type(error).__name__}: {error}); a file is "
                "missing or damaged, use another checkpoint"
            ) from error
        return target


class _SlicePlanner(DefaultLoadPlanner):
    """Puts what is read into one tensor that stands for a slice of the checkpoint's."""

    def __init__(self, target: Tensor):
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._target


class _RestrictedReader(FileSystemReader):
    """A reader that never runs code from a checkpoint: torch reads `.metadata` by plain pickle."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        file = Path(self.path) / METADATA_FILE
        try:
            with file.open("rb") as stream:
                metadata = _MetadataUnpickler(stream).load()
            if not isinstance(metadata, Metadata):
                raise pickle.UnpicklingError(f"holds a {type(metadata).__name__}")
        except (*_READ_ERRORS, IndexError, TypeError, AttributeError, ImportError) as error:
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
