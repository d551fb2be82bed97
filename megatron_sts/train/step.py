"""One training step: the plan is handed down, micro-batches go through megatron-core's schedule, weights move."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_sts.data import IGNORED_LABEL, Batch
from megatron_sts.model.data_parallel import SkippingDataParallel
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.model.skippable_layer import parameters_of_skipped
from megatron_sts.model.text_rows import TextRows
from megatron_sts.parallel.chunk import take
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.sequence import Ranges, own_ranges
from megatron_sts.sts import StepPlan
from megatron_sts.train.bad_steps import Judgement, StepJudge
from megatron_sts.train.optimizer import StageOptimizer
from megatron_sts.train.stopping import StopReason


def _never() -> StopReason:
    return StopReason.NONE


def _nothing_at_work() -> bool:
    return False


@dataclass(frozen=True)
class StepSums:
    """What the ranks know together of a step before its update, the same on every rank.

    loss: mean over the supervised tokens of the global batch, weighted by what each weighs. supervised_tokens: their
    number, whatever they weigh. bad_micro_batches: those of the global batch, by number, whose loss is not finite.
    stop: why some rank wishes to stop after this step. saves: whether some rank was still at work on a checkpoint.
    """

    loss: float
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
    ):
        self._chunks = chunks
        self._wrapped = wrapped
        self._optimizer = optimizer
        self._place = place
        self._judge = judge or StepJudge()
        config = chunks[0].config
        no_sync = [ddp.no_sync for ddp in wrapped]
        self._counted: list[Tensor] = []
        """Summed weights of the supervised tokens of each micro-batch of the step, on the last stage; 0-d float64."""
        for chunk in chunks:
            chunk.config.finalize_model_grads_func = self._finalize_gradients
            chunk.config.grad_scale_func = optimizer.inner.scale_loss
            # Gradients are complete, and may be sent, in the last micro-batch alone.
            chunk.config.no_sync_func = no_sync if len(no_sync) > 1 else no_sync[0]
        self._forward_backward = get_forward_backward_func(
            config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size
        )

    def run(
        self,
        plan: StepPlan,
        batches: list[Batch] | None,
        micro_batches: int,
        micro: int,
        length: int,
        stop: Callable[[], StopReason] = _never,
        segments: Sequence[Sequence[int]] | None = None,
        saves: Callable[[], bool] = _nothing_at_work,
        text: Sequence[Sequence[Ranges]] | None = None,
    ) -> StepResult:
        """One step.

        batches: this rank's micro-batches, None on middle pipeline stages, which read none. micro_batches, micro:
        their number and size. length: padded sequence length of the step, the same on all ranks. stop: whether this
        rank wishes to stop, asked once the gradients are there. segments: where samples are packed, of each
        micro-batch's one row the lengths that attention keeps apart; on all pipeline stages. saves: whether this rank
        is at work on a checkpoint, asked with `stop`. text: of each micro-batch the positions of text in its rows; on
        all pipeline stages, where the plan skips layers for visual tokens.
        """
        sums = self.forward_backward(plan, batches, micro_batches, micro, length, stop, segments, saves, text)
        judgement: Judgement | None = None

        def is_good(grad_norm: float) -> bool:
            nonlocal judgement
            judgement = self._judge.judge(sums.loss, grad_norm)
            return judgement is None or not judgement.dropped

        update = self._optimizer.update(plan.skipped_layers, is_good)
        return StepResult(**vars(sums), grad_norm=update.grad_norm, judgement=judgement)

    def forward_backward(
        self,
        plan: StepPlan,
        batches: list[Batch] | None,
        micro_batches: int,
        micro: int,
        length: int,
        stop: Callable[[], StopReason] = _never,
        segments: Sequence[Sequence[int]] | None = None,
        saves: Callable[[], bool] = _nothing_at_work,
        text: Sequence[Sequence[Ranges]] | None = None,
    ) -> StepSums:
        """Leaves the reduced gradients, as weighted means over supervised tokens."""
        for chunk, wrapped in zip(self._chunks, self._wrapped, strict=True):
            chunk.train()
            if chunk.vision is not None:
                # A frozen tower is an encoder in evaluation mode; its families have no dropout to train with.
                chunk.vision.eval()
            chunk.set_plan(plan)
            wrapped.begin_step(parameters_of_skipped(chunk.language.decoder.layers), self._optimizer.freezes_skipped)
        self._optimizer.zero_grad()
        self._counted.clear()
        held = [None] * micro_batches if batches is None else [_on_device(batch) for batch in batches]
        apart = [None] * micro_batches if segments is None else segments
        rows: list[TextRows | None] = [None] * micro_batches
        if text is not None:
            rows = [self._chunks[0].text_rows(*each) for each in zip(text, segments or repeat((length,)), strict=False)]
        # The interleaved schedule reads the micro-batches once for each of this rank's chunks.
        iterators = [zip(held, apart, rows, strict=True) for _ in self._wrapped]
        losses = self._forward_backward(
            forward_step_func=partial(_forward_step, self._place, self._counted),
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self._wrapped,
            num_microbatches=micro_batches,
            seq_length=length,
            micro_batch_size=micro if segments is None else 1,
            forward_only=False,
        )
        return self._sum(losses, micro_batches, stop, saves)

    @torch.no_grad()
    def run_without_gradients(self, plan: StepPlan, batch: Batch | None, micro: int, length: int) -> None:
        """One forward pass of every rank over a micro-batch, in training mode, that changes no weight."""
        for chunk in self._chunks:
            chunk.train()
            if chunk.vision is not None:
                chunk.vision.eval()
            chunk.set_plan(plan)
        held = None if batch is None else _on_device(batch)
        # The interleaved schedule takes a multiple of the pipeline stages.
        micro_batches = self._place.pipeline_size
        iterators = [iter([(held, None, None)] * micro_batches) for _ in self._wrapped]
        self._forward_backward(
            forward_step_func=partial(_forward_step, self._place, []),
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self._wrapped,
            num_microbatches=micro_batches,
            seq_length=length,
            micro_batch_size=micro,
            forward_only=True,
        )

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
        micro_batches: int,
        stop: Callable[[], StopReason],
        saves: Callable[[], bool],
    ) -> StepSums:
        """The loss of the global batch, its supervised tokens, who wishes to stop, who saves; in one collective."""
        place, device = self._place, torch.cuda.current_device()
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        # Contract: sampler.rank_slice deals the micro-batches of a step out to the data-parallel ranks in turn.
        not_finite = torch.zeros(micro_batches, place.data_size, dtype=torch.float64, device=device)
        if place.last_stage and place.tensor_rank == 0:
            for number, loss in enumerate(losses):
                of_micro_batch = loss["sums"]
                sums += of_micro_batch
                not_finite[number, place.data_rank] = (~torch.isfinite(of_micro_batch[0])).to(sums.dtype)
        wishes = torch.zeros(len(StopReason), dtype=torch.float64)
        wishes[stop()] = 1.0
        at_work = torch.tensor([float(saves())], dtype=torch.float64)
        total = torch.cat([sums, at_work.to(device), wishes.to(device), not_finite.flatten()])
        dist.all_reduce(total)
        loss_sum, weight, tokens, saving, *counts = total.tolist()
        asked, bad = counts[: len(StopReason)], counts[len(StopReason) :]
        return StepSums(
            loss_sum / weight if weight else 0.0,
            int(tokens),
            tuple(number for number, count in enumerate(bad) if count),
            max(reason for reason in StopReason if asked[reason]),
            saving > 0,
        )


def _on_device(batch: Batch) -> Batch:
    return batch.on_device(torch.cuda.current_device())


def _forward_step(
    place: Place,
    counted: list[Tensor],
    batches: Iterator[tuple[Batch | None, Sequence[int] | None, TextRows | None]],
    model: SkippingDataParallel,
) -> tuple[Tensor, Any]:
    """megatron-core's forward step: (output, function from output to (loss sum, tokens, figures)).

    A context-parallel rank takes the loss of the positions that it holds; sums and counts go over all ranks later.
    counted: takes in what the micro-batch's supervised tokens weigh, once the loss is taken.
    """
    batch, segments, text = next(batches)
    if batch is None:
        return model(None, segments=segments, text=text), None
    whole = segments or (batch.labels.size(1),)
    held = own_ranges(whole, context_rank=place.context_rank, context_size=place.context_size)
    labels = take(batch.labels, held)
    own_weights = None if batch.weights is None else take(batch.weights, held)
    loss = partial(_loss, counted, labels, own_weights)
    return model(batch, labels=labels.clamp_min(0), segments=segments, text=text), loss


def _loss(
    counted: list[Tensor], labels: Tensor, weights: Tensor | None, token_losses: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """labels, weights, token_losses [b, s] -> (summed weighted loss, number of supervised tokens, figures).

    The figures: `sums`, float64 [3], the loss, the summed weights, which `counted` takes in, and the number.
    """
    supervised = labels != IGNORED_LABEL
    weighing = supervised if weights is None else weights
    loss = (token_losses.float() * weighing).sum()
    tokens = supervised.sum()
    counted.append(weighing.sum(dtype=torch.float64))
    return loss, tokens.to(torch.int), {"sums": torch.stack([loss.detach().double(), counted[-1], tokens.double()])}
