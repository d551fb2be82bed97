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
from megatron_sts.parallel.device import to_device
from megatron_sts.parallel.groups import Place
from megatron_sts.train.bad_steps import Judgement, StepJudge
from megatron_sts.train.distillation import Teacher
from megatron_sts.train.optimizer import StageOptimizer
from megatron_sts.train.passes import Output, Passes, Supervision
from megatron_sts.train.step_input import StepInput
from megatron_sts.train.stopping import StopReason


@dataclass(frozen=True)
class RankReport:
    """What a rank tells the others with the sums of a step.

    stop: why it wishes to stop after this step. saves: whether it is at work on a checkpoint. bad_ahead: whether it
    has found a sample of the next step that cannot be read. data_wait_s: how long the step waited for its data.
    """

    stop: StopReason = StopReason.NONE
    saves: bool = False
    bad_ahead: bool = False
    data_wait_s: float = 0.0


@dataclass(frozen=True)
class StepSums:
    """What the ranks know together of a step before its update, the same on every rank.

    loss: mean over the supervised tokens of the global batch, weighted by what each weighs. distill_loss: the mean of
    their KL divergence from the sparse plan's predictions in the same way, without its own weight; None in a step that
    does not distill. supervised_tokens: their number, whatever they weigh. bad_micro_batches: those of the global
    batch, by number, whose loss is not finite. stop, saves, bad_ahead: whether some rank reports it. data_wait_s: of
    the rank that waited longest.
    """

    loss: float
    distill_loss: float | None
    supervised_tokens: int
    bad_micro_batches: tuple[int, ...]
    stop: StopReason
    saves: bool
    bad_ahead: bool
    data_wait_s: float


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
        for chunk in chunks:
            chunk.config.finalize_model_grads_func = _finalize_gradients
            chunk.config.grad_scale_func = optimizer.inner.scale_loss
            # Gradients are complete, and may be sent, in the last micro-batch alone.
            chunk.config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]

    def run(self, given: StepInput, report: Callable[[], RankReport] = RankReport) -> StepResult:
        """One step.

        report: what this rank tells the others, asked when its passes are handed to the device. The host waits for the
        device once, to read sums and gradient norm together: a bad step must change nothing, so they are judged before
        the update.
        """
        launched = self._launch(given, report)
        sums, grad_norm = self._read(given, launched, self._optimizer.squared_grad_norm())
        judgement = self._judge.judge(sums.loss, grad_norm)
        if judgement is not None and judgement.dropped:
            self._optimizer.pass_over()
        else:
            self._optimizer.update(given.plan.skipped_layers, grad_norm)
        return StepResult(**vars(sums), grad_norm=grad_norm, judgement=judgement)

    def forward_backward(self, given: StepInput, report: Callable[[], RankReport] = RankReport) -> StepSums:
        """Leaves the reduced gradients, as weighted means over supervised tokens."""
        launched = self._launch(given, report)
        return self._read(given, launched, launched.new_zeros(()))[0]

    def _launch(self, given: StepInput, report: Callable[[], RankReport]) -> Tensor:
        """`forward_backward` without waiting for it: the sums of `_sum`."""
        predictions = None if given.teacher is None else self._teacher.predict(given)

        def reader(supervision: Supervision) -> Divergence | None:
            return None if predictions is None else self._teacher.divergence(supervision, predictions)

        self._passes.begin_training(given.plan)
        for chunk, wrapped in zip(self._chunks, self._wrapped, strict=True):
            wrapped.begin_step(parameters_of_skipped(chunk.language.decoder.layers), self._optimizer.freezes_skipped)
        self._optimizer.zero_grad()
        losses = self._passes.forward_backward(given, partial(_loss, self._distill), reader)
        return self._sum(losses, given, report())

    @torch.no_grad()
    def run_without_gradients(self, given: StepInput) -> None:
        """One forward pass of every rank over micro-batches, in training mode, that changes no weight."""
        self._passes.begin_training(given.plan)
        self._passes.forward(given, partial(_loss, 0.0))

    @property
    def modules(self) -> list[SkippingDataParallel]:
        """This rank's model chunks as the schedules call them."""
        return self._wrapped

    def gather_weights(self) -> None:
        """Make this rank's weights whole where their gathering was left to the next forward pass."""
        for ddp in self._wrapped:
            ddp.gather_weights()

    def _sum(self, losses: list[dict[str, Tensor]], given: StepInput, own: RankReport) -> Tensor:
        """The loss of the global batch and what the ranks report, in one collective; gradients become means by it.

        float64, in the order in which `_read` takes it; still on the device, which nobody waits for.
        """
        place, device = self._place, torch.cuda.current_device()
        sums = torch.zeros(4, dtype=torch.float64, device=device)
        # Contract: sampler.rank_slice deals the micro-batches of a step out to the data-parallel ranks in turn.
        not_finite = torch.zeros(given.micro_batches, place.data_size, dtype=torch.float64, device=device)
        if place.last_stage and place.tensor_rank == 0:
            for number, loss in enumerate(losses):
                of_micro_batch = loss["sums"]
                sums += of_micro_batch
                not_finite[number, place.data_rank] = (~torch.isfinite(of_micro_batch[:2]).all()).to(sums.dtype)
        told = torch.zeros(2 + len(StopReason) + place.world_size, dtype=torch.float64, device="cpu")
        told[0], told[1], told[2 + own.stop] = own.saves, own.bad_ahead, 1.0
        told[2 + len(StopReason) + place.rank] = own.data_wait_s
        total = torch.cat([sums, to_device(told, device), not_finite.flatten()])
        dist.all_reduce(total)
        # In float64 the sum is exact where all weights are 1, and so are the gradients what they are without weights.
        weight = total[2]
        for ddp in self._wrapped:
            ddp.scale_gradients(1.0 / torch.where(weight > 0, weight, 1.0))
        return total

    def _read(self, given: StepInput, total: Tensor, squared_norm: Tensor) -> tuple[StepSums, float]:
        """What `_sum` left on the device, and the gradient norm: the one place where a step waits for the device."""
        *figures, square = torch.cat([total, squared_norm.reshape(1)]).tolist()
        loss_sum, divergence, weight, tokens, saving, bad_ahead, *rest = figures
        asked, rest = rest[: len(StopReason)], rest[len(StopReason) :]
        waits, bad = rest[: self._place.world_size], rest[self._place.world_size :]
        sums = StepSums(
            loss_sum / weight if weight else 0.0,
            None if given.teacher is None else divergence / weight if weight else 0.0,
            int(tokens),
            tuple(number for number, count in enumerate(bad) if count),
            max(reason for reason in StopReason if asked[reason]),
            saving > 0,
            bad_ahead > 0,
            max(waits),
        )
        return sums, square**0.5


def _finalize_gradients(chunks: list[Any], num_tokens: Tensor | None, **arguments: Any) -> None:
    """megatron-core's, without its division by the number of tokens.

    It counts whole numbers alone, where tokens may be weighted, and has the host wait for them; `TrainStep` divides by
    the sum of the weights.
    """
    finalize_model_grads(chunks, None, **arguments)


def _loss(distill: float, supervision: Supervision, token_losses: Tensor, reader: Divergence | None) -> Output:
    """token_losses [b, s] -> (summed weighted loss, number of supervised tokens, figures).

    A context-parallel rank's own; sums and counts go over all ranks later. The figures: `sums`, float64 [4], the loss,
    the divergence, the summed weights and the number.
    """
    weights, supervised = supervision.weights, supervision.is_supervised
    loss = (token_losses.float() * weights).sum()
    tokens = supervised.sum()
    weight = weights.sum(dtype=torch.float64)
    sums = [loss.detach().double(), torch.zeros_like(weight), weight, tokens.double()]
    if reader is not None:
        assert reader.divergence is not None
        divergence = (reader.divergence * weights[supervised]).sum()
        sums[1] = divergence.detach().double()
        loss = loss + distill * divergence
    return loss, tokens.to(torch.int), {"sums": torch.stack(sums)}
