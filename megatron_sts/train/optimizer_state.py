"""The optimiser's state in a checkpoint: each rank's own part of it, sharded as the parameters that it belongs to.

The distributed optimiser keeps a flat range of a parameter on each data-parallel rank, the plain one all of it. Both
are stored as boxes of the whole parameter under the same keys, so that each can be loaded into the other and into any
layout, and no rank needs another's part. megatron-core's own formats gather the state, or keep to one layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer
from torch import Tensor

from megatron_sts.train.boxes import boxes_of_range

MASTER_WEIGHT = "fp32_param"
"""What the weight in fp32 is called beside the moments, where the model's own is in less."""


@dataclass(frozen=True)
class SteppedTensor:
    """What an optimiser steps in place of a model's parameter: itself, its copy in fp32, or a flat part of one.

    start, stop: the part of the flattened parameter.
    """

    parameter: Tensor
    tensor: Tensor
    start: int
    stop: int

    @property
    def is_master(self) -> bool:
        """Whether it holds more than the parameter does, so that it has to be saved."""
        return self.tensor.dtype != self.parameter.dtype


def stepped_tensors(optimizer: MegatronOptimizer) -> Iterator[SteppedTensor]:
    """What one of megatron-core's optimisers steps on this rank."""
    if isinstance(optimizer, DistributedOptimizer):
        pairs = (
            (optimizer.model_float16_groups, optimizer.shard_fp32_from_float16_groups),
            (optimizer.model_fp32_groups, optimizer.shard_fp32_groups),
        )
        for model_groups, shard_groups in pairs:
            for models, shards in zip(model_groups, shard_groups, strict=True):
                for model, shard in zip(models, shards, strict=True):
                    part = optimizer._get_model_param_range_map(model)["param"]
                    yield SteppedTensor(model, shard, part.start, part.end)
        return
    by_main = {id(main): model for model, main in _half_precision_pairs(optimizer)}
    for group in optimizer.param_groups:
        for main in group["params"]:
            yield SteppedTensor(by_main.get(id(main), main), main, 0, main.numel())


def _half_precision_pairs(optimizer: MegatronOptimizer) -> Iterator[tuple[Tensor, Tensor]]:
    for models, mains in zip(
        getattr(optimizer, "float16_groups", ()), getattr(optimizer, "fp32_from_float16_groups", ()), strict=True
    ):
        yield from zip(models, mains, strict=True)


def state_shards(
    optimizer: ChainedOptimizer, model_state: dict[str, Any], master_weight: str = MASTER_WEIGHT
) -> list[ShardedTensor]:
    """Moments and master weights of this rank, as views: what is loaded into them is loaded into the optimiser.

    model_state: the model's sharded state, made from tensors that still are the parameters.
    """
    sharded = {
        id(entry.data): entry
        for entry in nested_values(model_state)
        if isinstance(entry, ShardedTensor | ShardedTensorFactory)
    }
    shards: list[ShardedTensor] = []
    for inner in optimizer.chained_optimizers:
        is_held_once = isinstance(inner, DistributedOptimizer)
        for stepped in stepped_tensors(inner):
            state = {
                name: value
                for name, value in inner.optimizer.state[stepped.tensor].items()
                if isinstance(value, Tensor) and value.shape == stepped.tensor.shape
            }
            if stepped.is_master:
                state[master_weight] = stepped.tensor
            for piece in _pieces(sharded[id(stepped.parameter)]):
                if is_held_once:
                    piece.replica_id = (*piece.replica_id[:-1], 0)
                for name, value in state.items():
                    shards += _shards(f"optimizer.state.{name}.{piece.key}", piece, stepped, value.detach())
    return shards


def _pieces(entry: ShardedTensor | ShardedTensorFactory) -> list[ShardedTensor]:
    """The tensors of a checkpoint that hold a parameter: the two halves of a gated MLP's first weight are apart."""
    return entry.build() if isinstance(entry, ShardedTensorFactory) else [replace(entry)]


def _shards(key: str, piece: ShardedTensor, stepped: SteppedTensor, value: Tensor) -> Iterator[ShardedTensor]:
    """The boxes of `piece` that `value`, which belongs to a part of the parameter, covers."""
    parameter, data = stepped.parameter, piece.data
    assert data is not None and data.is_contiguous() and value.is_contiguous()
    assert data.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
    before = data.storage_offset() - parameter.storage_offset()
    start, stop = max(stepped.start - before, 0), min(stepped.stop - before, data.numel())
    stacked = piece.prepend_axis_num
    for box in boxes_of_range(piece.local_shape, start, stop):
        first = box.start + before - stepped.start
        # megatron-core takes no stacked dimensions beside parts of several sizes: here they are ordinary ones.
        shape = (1,) * stacked + box.shape
        offset = (
            *piece.global_offset[:stacked],
            *(one + other for one, other in zip(piece.global_offset[stacked:], box.offset, strict=True)),
        )
        yield ShardedTensor(
            key=key,
            data=value.view(-1)[first : first + box.size].view(shape),
            dtype=value.dtype,
            local_shape=shape,
            global_shape=piece.global_shape,
            global_offset=offset,
            axis_fragmentations=None,
            replica_id=piece.replica_id,
            allow_shape_mismatch=piece.allow_shape_mismatch,
        )
