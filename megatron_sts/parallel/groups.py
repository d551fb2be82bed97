"""Process groups: start and end of torch.distributed and megatron-core's model-parallel state."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_sts.config import ParallelConfig
from megatron_sts.errors import LostRankError
from megatron_sts.parallel.device import backend, prepare_device
from megatron_sts.parallel.exchange import own_share

# Of NCCL, over the time that ranks wait: its own end of a process names nobody (parallel/watchdog.py does, before it).
_NCCL_MARGIN_MINUTES = 1.0


@dataclass(frozen=True)
class Place:
    """Where this process stands in the layout: rank and size of every kind of parallelism."""

    rank: int
    world_size: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    context_rank: int
    context_size: int
    data_rank: int
    data_size: int

    def own_images(self, count: int) -> range:
        """Of the `count` images of a micro-batch, in its order, those that this rank's tower sees.

        The tensor- and context-parallel ranks of the first stage share a micro-batch's images. Contract: the ranks of
        megatron-core's tensor-and-context group stand in this order; model/visual_tokens.py goes by that group.
        """
        rank = self.context_rank * self.tensor_size + self.tensor_rank
        return own_share(count, rank, self.tensor_size * self.context_size)

    @property
    def first_stage(self) -> bool:
        """Whether this rank holds the first pipeline stage, with the tower and the embedding."""
        return self.pipeline_rank == 0

    @property
    def last_stage(self) -> bool:
        """Whether this rank holds the last pipeline stage, with the loss."""
        return self.pipeline_rank == self.pipeline_size - 1


def world_size_of_environment() -> int:
    """Ranks that torchrun started; 1 when a command was started without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_groups(parallel: ParallelConfig, seed: int) -> Place:
    """Join the process group (once) and lay the model-parallel groups over it.

    Without torchrun's environment variables a group of one process is made. Raises LostRankError where the ranks do not
    come together.
    """
    device = prepare_device()
    minutes = parallel.timeout_minutes + (_NCCL_MARGIN_MINUTES if backend() == "nccl" else 0.0)
    if not dist.is_initialized():
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0")):
            os.environ.setdefault(name, value)
        _join(device, minutes)
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        # Made with their own timeout, not that of the whole.
        distributed_timeout_minutes=minutes,
    )
    # The model has no dropout; megatron-core still forks this state around its tensor-parallel regions.
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return place()


def _join(device: torch.device, minutes: float) -> None:
    try:
        # Told its device, NCCL connects at once, and makes the groups below by splitting this one.
        own = device if backend() == "nccl" else None
        dist.init_process_group(backend(), timeout=timedelta(minutes=minutes), device_id=own)
        # NCCL's barriers run on the device of the first collective; before one, on a guess from the rank.
        dist.all_reduce(torch.zeros(1, device=device))
    except RuntimeError as error:
        raise LostRankError(
            f"the {os.environ['WORLD_SIZE']} ranks could not join over {backend()} ({str(error).strip()}); either "
            "another rank ended, then its node says why, or the nodes do not reach each other by these addresses: name "
            "the network between them, by --interface of examples/launch/torchrun.sh or by GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME"
        ) from error


def place() -> Place:
    """This process's place in the groups that `start_groups` made."""
    return Place(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=parallel_state.get_context_parallel_world_size(),
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
    )


def group_collection() -> ProcessGroupCollection:
    """megatron-core's own collection of the groups, to hand down to models and schedules."""
    return ProcessGroupCollection.use_mpu_process_groups()


def stop_groups() -> None:
    """Leave all groups; safe to call when none were made."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
