"""A rank's part of a checkpoint: planned by all ranks together, copied, and written by this rank alone.

The format is megatron-core's torch_dist, by its own planner. megatron-core's writer starts processes, and waits for
ever for one that is killed; torch's writes in the thread that calls it, and raises its errors there.
"""

import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner, mcore_to_pyt_state_dict
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from megatron_sts.config import FileEntry, entries_of
from megatron_sts.parallel.device import synchronize
from megatron_sts.parallel.together import to_rank_zero

# torch.save puts each tensor into an archive of its own.
_BYTES_OF_AN_ARCHIVE = 2048


@dataclass(frozen=True)
class WrittenPart:
    """What a rank has written: where each tensor lies, and size and hash of its files."""

    results: list[WriteResult]
    entries: dict[str, FileEntry]


class StatePart:
    """This rank's part of a sharded state, on its way into a directory.

    Made on all ranks together, the only time that they need each other; `copy` and `write` touch this rank alone.
    """

    def __init__(self, state: dict[str, Any], directory: Path):
        """state: megatron-core's sharded state dict; taken apart. directory: where it will be written to."""
        self._directory = directory
        rank = dist.get_rank()
        sharded, common = save_preprocess(state)
        planner = MCoreSavePlanner(flatten_state_dict=False)
        planner.set_up_planner(mcore_to_pyt_state_dict(_to_be_written(sharded)), is_coordinator=rank == 0)
        plan = planner.create_local_plan()
        plans = to_rank_zero(plan)
        self._metadata = planner.create_global_plan(plans)[1] if plans is not None else None
        # The writer names a rank's file by the place of its plan in the list.
        self._plan: SavePlan = FileSystemWriter(directory).prepare_global_plan([plan] * (rank + 1))[-1]
        self._data: dict[MetadataIndex, Tensor | io.BytesIO] = {
            item.index: planner.resolve_data(item) for item in plan.items
        }
        # Rates of the optimiser's groups are in it, and change with the next step.
        self._common = io.BytesIO()
        torch.save(common, self._common)

    @property
    def bytes(self) -> int:
        """About how many bytes of the disk this rank's files take."""
        sizes = (data.nbytes if isinstance(data, Tensor) else len(data.getbuffer()) for data in self._data.values())
        return sum(size + _BYTES_OF_AN_ARCHIVE for size in sizes)

    def copy(self) -> None:
        """Copy what is to be written to the CPU's memory, so that training can change it in the meantime."""
        self._data = {
            index: data.to("cpu", non_blocking=True, copy=True) if isinstance(data, Tensor) else data
            for index, data in self._data.items()
        }
        synchronize()

    def write(self) -> WrittenPart:
        """Write this rank's file through to the disk, and read it back for its hash. Needs no other rank.

        Raises OSError or RuntimeError, as torch does, where the disk does not take it.
        """
        if not self._plan.items:
            return WrittenPart([], {})
        # Nothing is copied ahead: it would wait for all that the GPU was given to do.
        writer = FileSystemWriter(self._directory, per_thread_copy_ahead=0)
        writer.set_up_storage_writer(is_coordinator=False)
        plan = writer.prepare_local_plan(self._plan)
        results = writer.write_data(plan, _Resolved(self._data)).wait()
        self._data = {}
        names = sorted({result.storage_data.relative_path for result in results})
        return WrittenPart(results, entries_of(self._directory, names))

    def complete(self, results: list[list[WriteResult]]) -> None:
        """On rank 0, from what all ranks have written: write what says where everything lies."""
        assert self._metadata is not None
        writer = FileSystemWriter(self._directory)
        writer.set_up_storage_writer(is_coordinator=True)
        writer.finish(self._metadata, results)
        (self._directory / COMMON_STATE_FNAME).write_bytes(self._common.getbuffer())
        save_config(CheckpointingConfig("torch_dist"), str(self._directory))


class _Resolved(DefaultSavePlanner):
    """Hands the writer what was resolved before."""

    def __init__(self, data: dict[MetadataIndex, Tensor | io.BytesIO]):
        super().__init__()
        self._data = data

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        return self._data[write_item.index]


def _to_be_written(sharded: dict[str, Any]) -> dict[str, list[Any]]:
    """What this rank writes, by the key in the checkpoint: of several replicas the main one."""
    by_key: dict[str, list[Any]] = defaultdict(list)
    for entry in nested_values(sharded):
        if is_main_replica(entry.replica_id):
            by_key[entry.unique_key if isinstance(entry, ShardedObject) else entry.key].append(entry)
    return by_key
