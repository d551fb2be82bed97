"""Reads a training checkpoint's tensors in one process, without a process group: any tensor, any layer."""

import re
from math import prod
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_sts.errors import CheckpointError
from megatron_sts.parallel.restricted_reader import METADATA_FILE, READ_ERRORS, RestrictedReader

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
        self._reader = RestrictedReader(checkpoint)
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
        except READ_ERRORS as error:
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
