"""Which rank writes what several data-parallel ranks hold alike: each of them an equal share."""

from typing import Any

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch.distributed import ProcessGroup


def share_out(state: list[Any], group: ProcessGroup) -> None:
    """Choose for each sharded tensor the rank of the data-parallel `group` that writes it, by its replica id.

    Contract: the ranks of the group hold the same tensors in the same order, and the last number of a replica id is
    the rank in the group, as megatron-core has it. So all come to the same choice without a word to each other.
    """
    filled = [0] * group.size()
    entries = [
        entry
        for entry in nested_values(state)
        if isinstance(entry, ShardedTensor | ShardedTensorFactory) and entry.data is not None
    ]
    for entry in sorted(entries, key=lambda entry: -entry.data.nbytes):
        *others, replica = entry.replica_id
        assert replica == group.rank(), f"{entry.key}: replica {entry.replica_id} on rank {group.rank()}"
        writer = filled.index(min(filled))
        entry.replica_id = (*others, (replica - writer) % group.size())
        if not any(others):
            # Else it is written by a group of other ranks, whichever is chosen here.
            filled[writer] += entry.data.nbytes
