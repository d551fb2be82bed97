"""Counts the bytes that a rank holds, writes and reads for a checkpoint."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from torch.distributed.checkpoint import FileSystemReader

from megatron_sts.train.checkpoint_save import CheckpointSave
from megatron_sts.train.loop import StageParts


def bytes_beside(parts: StageParts, state: dict[str, Any]) -> int:
    """Bytes that a state to be saved holds and that are neither the model's nor its optimiser's own."""
    live = [value for chunk in parts.chunks for value in (*chunk.parameters(), *chunk.buffers())]
    for inner in parts.optimizer.inner.chained_optimizers:
        for moments in inner.optimizer.state.values():
            live += [value for value in moments.values() if isinstance(value, torch.Tensor)]
        live += [value for group in inner.param_groups for value in group["params"]]
    own = {value.untyped_storage().data_ptr() for value in live}
    held = {
        entry.data.untyped_storage().data_ptr(): entry.data.untyped_storage().nbytes()
        for entry in nested_values(state)
        if isinstance(getattr(entry, "data", None), torch.Tensor)
    }
    return sum(size for storage, size in held.items() if storage not in own)


def bytes_to_write(save: CheckpointSave) -> int:
    """Bytes of the tensors that this rank writes, by its plan: its thread lets go of what it has written."""
    of_tensors = [item.tensor_data for item in save._part._plan.items if item.tensor_data is not None]
    return sum(math.prod(data.chunk.sizes) * data.properties.dtype.itemsize for data in of_tensors)


@contextlib.contextmanager
def bytes_read(found: list[int]) -> Iterator[None]:
    """Appends the bytes of the tensors' files that this rank reads."""
    original = FileSystemReader.read_data

    def read_data(reader: FileSystemReader, plan: Any, planner: Any) -> Any:
        found.append(sum(reader.storage_data[item.storage_index].length for item in plan.items))
        return original(reader, plan, planner)

    with mock.patch.object(FileSystemReader, "read_data", read_data):
        yield
