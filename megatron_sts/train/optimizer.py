"""The optimiser of a stage: megatron-core's, with a learning rate per part, leaving skipped layers alone."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.optimizer import ChainedOptimizer, MegatronOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.model.data_parallel import SkippingDataParallel
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.model.precision import parameter_dtype
from megatron_sts.parallel.device import has_gpu
from megatron_sts.parallel.megatron_versions import gradients_of_norm
from megatron_sts.train.adam import SharedStepAdamW
from megatron_sts.train.optimizer_state import MASTER_WEIGHT, state_shards, stepped_tensors
from megatron_sts.train.prepared_optimizer import PreparedOptimizer


class StageOptimizer:
    """Steps the trained parameters of a stage."""

    def __init__(
        self,
        recipe: Recipe,
        stage: StageConfig,
        total_steps: int,
        chunks: list[MultimodalModel],
        wrapped: list[SkippingDataParallel],
    ):
        self._counts_updates = recipe.optimizer.kind == "adam"
        self.is_distributed = recipe.optimizer.distributed
        """Whether each data-parallel rank holds its own part of the state."""
        self.updates = 0
        """How many times it has updated, without the steps that were dropped; the same on every rank."""
        self.freezes_skipped = all(skip.parameters == "frozen" for skip in stage.skip)
        self.inner = _build(recipe, stage, wrapped)
        self._parameters_by_layer = _parameters_by_layer(self.inner, chunks)
        self._scheduler = _scheduler(recipe, stage, total_steps, self.inner)
        # Step t trains with the rate of count t + 1: neither the first nor the last step has the rate zero.
        self._scheduler.step(1)

    @property
    def has_parameters(self) -> bool:
        """Whether this rank trains anything; False on pipeline ranks whose parts are all frozen."""
        return any(group["params"] for group in self.inner.param_groups)

    @property
    def learning_rate(self) -> float:
        """The highest rate of any part in the coming step."""
        return max(group["lr"] for group in self.inner.param_groups)

    def learning_rates(self) -> list[tuple[float, float]]:
        """(highest rate, rate of the coming step) of each parameter group, in order."""
        return [(group["max_lr"], group["lr"]) for group in self.inner.param_groups]

    def zero_grad(self) -> None:
        """Forget the last step's gradients."""
        self.inner.zero_grad()

    @torch.no_grad()
    def squared_grad_norm(self) -> Tensor:
        """The square of the norm of the whole model's reduced gradients, before clipping; all ranks together.

        0-d float64 on the device, which nobody waits for: megatron-core's own norm is a number of the host.
        """
        self.inner.prepare_grads()
        total = torch.zeros((), dtype=torch.float64, device=torch.cuda.current_device())
        for optimizer in self.inner.chained_optimizers:
            square = torch.zeros_like(total)
            if gradients := gradients_of_norm(optimizer):
                square = torch.nn.utils.get_total_norm(gradients).double() ** 2
            dist.all_reduce(square, group=optimizer.get_grad_stats_parallel_group())
            total += square
        return total

    @torch.no_grad()
    def update(self, skipped_layers: frozenset[int], grad_norm: float) -> None:
        """Update from the gradients of `squared_grad_norm`, clipped.

        Weights and moments of the skipped layers (0-based) stay bitwise as they are, or with `skip.parameters:
        momentum` move as under a gradient of zero.
        """
        for layer in skipped_layers if self.freezes_skipped else ():
            # Without a gradient an optimiser passes a parameter over; a gradient of zero would still move it.
            for parameter in self._parameters_by_layer.get(layer, ()):
                parameter.grad = None
        self.inner.step_with_norm(grad_norm)
        self.updates += 1
        self._scheduler.step(1)

    def pass_over(self) -> None:
        """In place of an update, for a step that changes nothing but the rate of the next one."""
        self._scheduler.step(1)

    def shards(self, model_state: dict[str, Any], master_weight: str = MASTER_WEIGHT) -> list[ShardedTensor]:
        """This rank's moments and master weights, to be saved or loaded into; none where it trains nothing.

        model_state: the model's sharded state, made from tensors that still are the parameters.
        """
        return state_shards(self.inner, model_state, master_weight)

    def resume(self, step: int, updates: int) -> None:
        """Go on at a 0-based step of the stage, after so many updates, with what was loaded into `shards`."""
        self.updates = updates
        if self._counts_updates:
            for group in self.inner.param_groups:
                group["step"] = updates
        self._scheduler.num_steps = 0
        self._scheduler.step(step + 1)


def _build(recipe: Recipe, stage: StageConfig, wrapped: list[SkippingDataParallel]) -> PreparedOptimizer:
    settings, rates = recipe.optimizer, stage.learning_rate.rates
    highest = max(rates.values())
    minimum_ratio = stage.learning_rate_schedule.minimum_ratio
    config = OptimizerConfig(
        optimizer=settings.kind,
        lr=highest,
        min_lr=highest * minimum_ratio,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.epsilon,
        sgd_momentum=settings.momentum,
        clip_grad=settings.clip_grad,
        bf16=recipe.precision != "fp32",
        params_dtype=parameter_dtype(recipe),
        use_distributed_optimizer=settings.distributed,
        overlap_param_gather=wrapped[0].ddp_config.overlap_param_gather,
    )
    overrides = get_standard_config_overrides(config)
    for part, rate in rates.items():
        key = ParamKey(with_name_predicate=ParamWithNamePredicate(part, _named_part(part)))
        overrides[key] = {"max_lr": rate, "min_lr": rate * minimum_ratio}
    optimizer = get_megatron_optimizer(config, wrapped, overrides, use_gloo_process_groups=has_gpu())
    for inner in optimizer.chained_optimizers:
        if type(inner.optimizer) is torch.optim.AdamW:
            inner.optimizer = SharedStepAdamW(inner.optimizer)
        elif settings.kind == "sgd" and inner.optimizer is not None:
            # torch's, also where megatron-core takes another library's: that one makes its momentum as it goes, and
            # takes all its parameters for new where one is.
            inner.optimizer = torch.optim.SGD(inner.optimizer.param_groups)
            _make_momentum(inner.optimizer)
        elif inner.init_state_fn is not None:
            # Transformer Engine's and apex's Adam make their moments in the first step, and could not be saved before.
            inner.init_state_fn(inner.optimizer, inner.config)
    return PreparedOptimizer(optimizer)


def _make_momentum(optimizer: torch.optim.SGD) -> None:
    """Momentum of zero from the start: the same first update, and a layer skipped since then has one to save."""
    for group in optimizer.param_groups:
        if group["momentum"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _named_part(part: str) -> Callable[[Tensor, str], bool]:
    return lambda parameter, name: f".{part}." in f".{name}"


def _scheduler(
    recipe: Recipe, stage: StageConfig, total_steps: int, optimizer: MegatronOptimizer
) -> OptimizerParamScheduler:
    schedule = stage.learning_rate_schedule
    highest = max(stage.learning_rate.rates.values())
    warmup = schedule.warmup_steps if schedule.warmup_steps is not None else round(total_steps * schedule.warmup_ratio)
    weight_decay = recipe.optimizer.weight_decay
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=highest,
        min_lr=highest * schedule.minimum_ratio,
        lr_warmup_steps=min(warmup, total_steps),
        lr_decay_steps=total_steps + 1,
        lr_decay_style=schedule.decay,
        start_wd=weight_decay,
        end_wd=weight_decay,
        wd_incr_steps=total_steps,
        wd_incr_style="constant",
    )


def _parameters_by_layer(optimizer: ChainedOptimizer, chunks: list[MultimodalModel]) -> dict[int, list[Tensor]]:
    """The tensors that the base optimiser steps, by 0-based language layer."""
    stepped = {
        id(pair.parameter): pair.tensor for inner in optimizer.chained_optimizers for pair in stepped_tensors(inner)
    }
    return {
        layer.layer_number - 1: [stepped[id(p)] for p in layer.parameters() if id(p) in stepped]
        for chunk in chunks
        for layer in chunk.language.decoder.layers
    }
