"""Writes a checkpoint that megatron-core loads into any layout, a few tensors at a time and in one process.

megatron-core's own writer resolves every tensor before it writes the first. Here torch's distributed writer is given a
plan whose tensors are made when their turn comes; the format and its metadata are the same.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

Make = Callable[[], Tensor]
Advance = Callable[[int], None]
"""Called with the bytes that have been written since the last call."""

# A file's tensors stay in memory until it is closed, so that a file should not hold many.
_FILE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a checkpoint's tensor, and how it is made when its turn comes.

    key, shape: of the whole tensor. offset, size: where the part lies in it, and its shape there. make: returns the
    part, of `size` or of `size` without leading ones, in any dtype.
    """

    key: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]
    dtype: torch.dtype
    make: Make

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the checkpoint."""
        return prod(self.size) * self.dtype.itemsize


def write_checkpoint(
    directory: Path, pieces: Sequence[Piece], objects: Sequence[str], advance: Advance, file_bytes: int = _FILE_BYTES
) -> None:
    """Write pieces, and objects that are None, as a torch_dist checkpoint into an empty directory.

    objects: unique keys of megatron-core's sharded objects (a module's extra state, of which there is none here).
    file_bytes: neighbouring pieces share a file up to this size.
    """
    writer = FileSystemWriter(directory)
    planner = _LazyPlanner(pieces, advance)
    # As if each file were written by a rank of its own: one plan is held in memory at a time.
    plans = [SavePlan([_object_item(key) for key in objects])] if objects else []
    plans += [SavePlan([_tensor_item(piece) for piece in group]) for group in _groups(pieces, file_bytes)]
    plans, metadata = create_default_global_save_plan(plans)
    writer.set_up_storage_writer(is_coordinator=True)
    plans = writer.prepare_global_plan([writer.prepare_local_plan(plan) for plan in plans])
    results: list[list[WriteResult]] = [writer.write_data(plan, planner).wait() for plan in plans]
    writer.finish(metadata, results)
    torch.save({}, directory / COMMON_STATE_FNAME)
    save_config(CheckpointingConfig("torch_dist"), str(directory))


class _LazyPlanner(DefaultSavePlanner):
    """Makes the tensor of a write item when the writer asks for it."""

    def __init__(self, pieces: Sequence[Piece], advance: Advance):
        super().__init__()
        self._pieces = {(piece.key, piece.offset): piece for piece in pieces}
        self._advance = advance

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """The data to write; for an object megatron-core's form of it, a list of one."""
        if write_item.type == WriteItemType.BYTE_IO:
            stream = io.BytesIO()
            torch.save([None], stream)
            return stream
        assert write_item.index.offset is not None
        piece = self._pieces[write_item.index.fqn, tuple(write_item.index.offset)]
        tensor = piece.make().to(piece.dtype).reshape(piece.size).contiguous()
        self._advance(tensor.nbytes)
        return tensor


def _groups(pieces: Sequence[Piece], file_bytes: int) -> Iterator[list[Piece]]:
    """Neighbours that share a file."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        if group and size + piece.nbytes > file_bytes:
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece.nbytes
    if group:
        yield group


def _tensor_item(piece: Piece) -> WriteItem:
    chunk = ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.size))
    data = TensorWriteData(chunk, TensorProperties(dtype=piece.dtype), torch.Size(piece.shape))
    return WriteItem(MetadataIndex(piece.key, chunk.offsets), WriteItemType.SHARD, tensor_data=data)


def _object_item(key: str) -> WriteItem:
    return WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO)
