"""One training step: the plan is handed down, micro-batches go through megatron-core's schedule, weights move."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from torch import Tensor

from megatron_sts.model.data_parallel import SkippingDataParallel
from megatron_sts.model.logits import Divergence
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.model.skippable_layer import parameters_of_skipped
from megatron_sts.parallel.groups import Place
from megatron_sts.train.bad_steps import Judgement, StepJudge
from megatron_sts.train.distillation import Teacher
from megatron_sts.train.optimizer import StageOptimizer
from megatron_sts.train.passes import Output, Passes, Supervision
from megatron_sts.train.step_input import StepInput
from megatron_sts.train.stopping import StopReason


def _never() -> StopReason:
    return StopReason.NONE


def _nothing_at_work() -> bool:
    return False


@dataclass(frozen=True)
class StepSums:
    """What the ranks know together of a step before its update, the same on every rank.

    loss: mean over the supervised tokens of the global batch, weighted by what each weighs. distill_loss: the mean of
    their KL divergence from the sparse plan's predictions in the same way, without its own weight; None in a step that
    does not distill. supervised_tokens: their number, whatever they weigh. bad_micro_batches: those of the global
    batch, by number, whose loss is not finite. stop: why some rank wishes to stop after this step. saves: whether some
    rank was still at work on a checkpoint.
    """

    loss: float
    distill_loss: float | None
    supervised_tokens: int
    bad_micro_batches: tuple[int, ...]
    stop: StopReason
    saves: bool


@dataclass(frozen=True)
class StepResult(StepSums):
    """What a step gave, the same on every rank.

    grad_norm: before clipping. judgement: what is wrong with the step, None where nothing is.
    """

    grad_norm: float
    judgement: Judgement | None

    @property
    def dropped(self) -> bool:
        """Whether nothing was updated."""
        return self.judgement is not None and self.judgement.dropped


class TrainStep:
    """Runs steps on this rank's model chunks."""

    def __init__(
        self,
        chunks: list[MultimodalModel],
        wrapped: list[SkippingDataParallel],
        optimizer: StageOptimizer,
        place: Place,
        judge: StepJudge | None = None,
        keeps_fp8_state: bool = False,
        distill: float = 0.0,
    ):
        """keeps_fp8_state: as of `Passes`. distill: weight of the divergence in steps that have a teacher."""
        self._chunks = chunks
        self._wrapped = wrapped
        self._optimizer = optimizer
        self._place = place
        self._judge = judge or StepJudge()
        self._distill = distill
        self._passes = Passes(chunks, wrapped, place, keeps_fp8_state)
        self._teacher = Teacher(chunks, self._passes, place)
        no_sync = [ddp.no_sync for ddp in wrapped]
        self._counted: list[Tensor] = []
        """Summed weights of the supervised tokens of each micro-batch of the step, on the last stage; 0-d float64."""
        for chunk in chunks:
            chunk.config.finalize_model_grads_func = self._finalize_gradients
            chunk.config.grad_scale_func = optimizer.inner.scale_loss
            # Gradients are complete, and may be sent, in the last micro-batch alone.
            chunk.config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]

    def run(
        self,
        given: StepInput,
        stop: Callable[[], StopReason] = _never,
        saves: Callable[[], bool] = _nothing_at_work,
    ) -> StepResult:
        """One step.

        stop: whether this rank wishes to stop, asked once the gradients are there. saves: whether this rank is at work
        on a checkpoint, asked with `stop`.
        """
        sums = self.forward_backward(given, stop, saves)
        judgement: Judgement | None = None

        def is_good(grad_norm: float) -> bool:
            nonlocal judgement
            judgement = self._judge.judge(sums.loss, grad_norm)
            return judgement is None or not judgement.dropped

        update = self._optimizer.update(given.plan.skipped_layers, is_good)
        return StepResult(**vars(sums), grad_norm=update.grad_norm, judgement=judgement)

    def forward_backward(
        self,
        given: StepInput,
        stop: Callable[[], StopReason] = _never,
        saves: Callable[[], bool] = _nothing_at_work,
    ) -> StepSums:
        """Leaves the reduced gradients, as weighted means over supervised tokens."""
        predictions = None if given.teacher is None else self._teacher.predict(given)

        def reader(supervision: Supervision) -> Divergence | None:
            return None if predictions is None else self._teacher.divergence(supervision, predictions)

        self._passes.begin_training(given.plan)
        for chunk, wrapped in zip(self._chunks, self._wrapped, strict=True):
            wrapped.begin_step(parameters_of_skipped(chunk.language.decoder.layers), self._optimizer.freezes_skipped)
        self._optimizer.zero_grad()
        self._counted.clear()
        losses = self._passes.forward_backward(given, partial(_loss, self._counted, self._distill), reader)
        return self._sum(losses, given, stop, saves)

    @torch.no_grad()
    def run_without_gradients(self, given: StepInput) -> None:
        """One forward pass of every rank over micro-batches, in training mode, that changes no weight."""
        self._passes.begin_training(given.plan)
        self._passes.forward(given, partial(_loss, [], 0.0))

    @property
    def modules(self) -> list[SkippingDataParallel]:
        """This rank's model chunks as the schedules call them."""
        return self._wrapped

    def _finalize_gradients(self, chunks: list[Any], num_tokens: Tensor | None, **arguments: Any) -> None:
        """megatron-core's, which divides the summed gradients by the number of tokens that it counted.

        Its schedules add up whole numbers alone, so the sum of the weights, which is no such number, takes their place.
        In float64 it is exact where all weights are 1, and so are the gradients what they are without weights.
        """
        device = torch.cuda.current_device()
        total = sum(self._counted, torch.zeros((), dtype=torch.float64, device=device))
        finalize_model_grads(chunks, None if num_tokens is None else total, **arguments)

    def gather_weights(self) -> None:
        """Make this rank's weights whole where their gathering was left to the next forward pass."""
        for ddp in self._wrapped:
            ddp.gather_weights()

    def _sum(
        self,
        losses: list[dict[str, Tensor]],
        given: StepInput,
        stop: Callable[[], StopReason],
        saves: Callable[[], bool],
    ) -> StepSums:
        """The loss of the global batch, its supervised tokens, who wishes to stop, who saves; in one collective."""
        place, device = self._place, torch.cuda.current_device()
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        # Contract: sampler.rank_slice deals the micro-batches of a step out to the data-parallel ranks in turn.
        not_finite = torch.zeros(given.micro_batches, place.data_size, dtype=torch.float64, device=device)
        if place.last_stage and place.tensor_rank == 0:
            for number, loss in enumerate(losses):
                of_micro_batch = loss["sums"]
                sums += of_micro_batch
                not_finite[number, place.data_rank] = (~torch.isfinite(of_micro_batch[:2]).all()).to(sums.dtype)
        wishes = torch.zeros(len(StopReason), dtype=torch.float64)
        wishes[stop()] = 1.0
        at_work = torch.tensor([float(saves())], dtype=torch.float64)
        total = torch.cat([sums, at_work.to(device), wishes.to(device), not_finite.flatten()])
        dist.all_reduce(total)
        loss_sum, divergence, weight, tokens, saving, *counts = total.tolist()
        asked, bad = counts[: len(StopReason)], counts[len(StopReason) :]
        return StepSums(
            loss_sum / weight if weight else 0.0,
            None if given.teacher is None else divergence / weight if weight else 0.0,
            int(tokens),
            tuple(number for number, count in enumerate(bad) if count),
            max(reason for reason in StopReason if asked[reason]),
            saving > 0,
        )


def _loss(
    counted: list[Tensor], distill: float, supervision: Supervision, token_losses: Tensor, reader: Divergence | None
) -> Output:
    """token_losses [b, s] -> (summed weighted loss, number of supervised tokens, figures).

    A context-parallel rank's own; sums and counts go over all ranks later. The figures: `sums`, float64 [4], the loss,
    the divergence, the summed weights, which `counted` takes in, and the number.
    """
    weights, supervised = supervision.weights, supervision.is_supervised
    loss = (token_losses.float() * weights).sum()
    tokens = supervised.sum()
    counted.append(weights.sum(dtype=torch.float64))
    sums = [loss.detach().double(), torch.zeros_like(counted[-1]), counted[-1], tokens.double()]
    if reader is not None:
        assert reader.divergence is not None
        divergence = (reader.divergence * weights[supervised]).sum()
        sums[1] = divergence.detach().double()
        loss = loss + distill * divergence
    return loss, tokens.to(torch.int), {"sums": torch.stack(sums)}
