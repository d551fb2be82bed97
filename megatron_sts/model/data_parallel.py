"""megatron-core's DistributedDataParallel, told which layers a step skips."""

from collections.abc import Iterable, Sequence
from typing import Any

from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from torch.nn import Module, Parameter

from megatron_sts.config import Recipe


def data_parallel_config(recipe: Recipe, ranks: int, gpu: bool) -> DistributedDataParallelConfig:
    """How gradients are reduced over so many data- and context-parallel ranks.

    gpu: whether they are GPUs, where transfers run beside computation unless the recipe says otherwise.
    """
    parallel, distributed = recipe.parallel, recipe.optimizer.distributed
    reduces, gathers = parallel.overlap_grad_reduce, parallel.overlap_param_gather
    if reduces is None:
        reduces = gpu and ranks > 1
    if gathers is None:
        gathers = gpu and ranks > 1 and reduces and distributed
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=parallel.grad_reduce_dtype == "fp32",
        use_distributed_optimizer=distributed,
        overlap_grad_reduce=reduces,
        overlap_param_gather=gathers,
        bucket_size=parallel.bucket_parameters,
        # Whole numbers of large blocks, which NCCL sends faster among many ranks; they would dwarf a small model.
        pad_buckets_for_high_nccl_busbw=gpu,
        check_for_nan_in_grad=False,
    )


class SkippingDataParallel(DistributedDataParallel):
    """Reduces gradients and gathers weights without waiting for what a skipped layer will never give.

    A parameter whose layer is skipped gets no gradient, so its bucket would wait for ever: with overlap_grad_reduce
    it is reported ready when the step begins. A bucket of skipped layers alone holds zeros on every rank, the plan
    being one for all: it is not sent, and where its weights stay as they are, they are not gathered.
    """

    bucket_groups: list[Any]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._idle: Sequence[Any] = ()
        """Bucket groups of skipped layers alone."""
        self._weights_stay = True

    def begin_step(self, skipped: Iterable[Parameter], weights_stay: bool = True) -> None:
        """Zero the gradients for a step in which `skipped` take no part; before its first forward pass.

        weights_stay: whether the step's update leaves the skipped weights as they are, so that nobody gathers them.
        """
        self.zero_grad_buffer()
        self._weights_stay = weights_stay
        # In order: what is sent, all ranks must send alike.
        waiting = [parameter for parameter in skipped if parameter in self.param_to_bucket_group]
        idle = set(waiting)
        self._idle = [group for group in self.bucket_groups if group.params <= idle]
        if self.ddp_config.overlap_grad_reduce:
            for parameter in waiting:
                group = self.param_to_bucket_group[parameter]
                if group not in self._idle:
                    group.register_grad_ready(parameter)

    def finish_grad_sync(self, force_all_reduce: bool | None = False) -> None:
        """Wait for the reduction of every bucket that was sent, and make ready for the gathering of the weights."""
        every = self.bucket_groups
        sent = [group for group in every if group not in self._idle]
        # megatron-core goes over the groups that it finds there.
        self.bucket_groups = sent
        try:
            super().finish_grad_sync(force_all_reduce=force_all_reduce)
        finally:
            self.bucket_groups = every
        gathered = sent if self._weights_stay else every
        for group in self._idle:
            group.param_gather_dispatched = self._weights_stay
        if self.ddp_config.overlap_param_gather:
            # Each gathering starts the one of the bucket before it; what is not gathered is left out of that chain.
            for group, following in zip(gathered, [None, *gathered], strict=False):
                group.next_param_gather_bucket_group = following

    def gather_weights_of(self, layer: Module) -> None:
        """Wait for the weights of a skipped layer, whose forward pass would have: the next update finds none open."""
        for parameter in layer.parameters():
            if parameter in self.param_to_bucket_group:
                self.param_to_bucket_group[parameter].finish_param_sync()

    def gather_weights(self) -> None:
        """Make the weights of this rank whole, as the last update left them: before they are saved or compared."""
        if self.ddp_config.overlap_param_gather:
            self.start_param_sync(force_sync=True)
