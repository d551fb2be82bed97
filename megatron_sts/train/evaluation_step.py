"""The loss of samples under a StepPlan by forward passes alone: no weight changes, no dropout, equal on all layouts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from torch.nn import Module

from megatron_sts.config import Recipe
from megatron_sts.data import IGNORED_LABEL, Batch
from megatron_sts.model.data_parallel import SkippingDataParallel
from megatron_sts.model.fp8_state import fp8_state_kept
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.model.text_rows import TextRows
from megatron_sts.parallel.chunk import take
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.sequence import Ranges, own_ranges
from megatron_sts.sts import StepPlan
from megatron_sts.train.held_out import HeldOutSamples


@dataclass(frozen=True)
class Estimate:
    """A mean over supervised tokens, with its standard error over the samples that they come from; nats."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class SampleLosses:
    """Of each sample, float64 [n]: the summed loss of its supervised tokens, and what these weigh."""

    losses: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Loss of a supervised token, in nats."""
        return float(self.losses.sum() / self.tokens.sum()) if self.tokens.any() else 0.0

    def rise_over(self, base: "SampleLosses") -> Estimate:
        """How much higher the mean loss is than that of the same samples under another plan.

        The standard error is that of paired differences: sample i differs by d_i over t_i tokens, the rise is
        r = sum d / sum t, and its variance n / (n - 1) * sum (d_i - r t_i)^2 / (sum t)^2, the estimator of a ratio.
        """
        assert np.array_equal(self.tokens, base.tokens)
        total, count = float(self.tokens.sum()), int((self.tokens > 0).sum())
        if not count:
            return Estimate(0.0, 0.0)
        differences = self.losses - base.losses
        rise = float(differences.sum()) / total
        if count == 1:
            return Estimate(rise, float("inf"))
        squares = float(((differences - rise * self.tokens) ** 2).sum())
        return Estimate(rise, (squares * count / (count - 1)) ** 0.5 / total)


class EvaluationStep:
    """Measures losses on this rank's model chunks, which may be in the middle of their training.

    modules: what the schedules call, one for each chunk: the chunk itself, or what it is wrapped in.
    """

    def __init__(self, recipe: Recipe, chunks: list[MultimodalModel], modules: Sequence[Module], place: Place):
        self._chunks, self._modules, self._place = chunks, modules, place
        # Delayed scaling alone has state that a forward pass moves.
        self._keeps_fp8_state = recipe.precision == "fp8" and recipe.fp8_recipe == "delayed"
        config = chunks[0].config
        self._forward = get_forward_backward_func(
            config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size
        )

    def losses(
        self, plan: StepPlan, samples: HeldOutSamples, progress: Callable[[int], None] = lambda passes: None
    ) -> SampleLosses:
        """The loss of each sample under a plan, the same on every rank; all ranks together.

        progress: told how many forward passes are done. The plan stays with the layers until the next step sets its
        own, and so does the evaluation mode.
        """
        for chunk, module in zip(self._chunks, self._modules, strict=True):
            chunk.eval()
            chunk.set_plan(plan)
            if isinstance(module, SkippingDataParallel):
                module.gather_weights()
        sums = torch.zeros(len(samples), 2, dtype=torch.float64)
        with torch.no_grad(), fp8_state_kept(self._chunks if self._keeps_fp8_state else ()):
            for number, forward in enumerate(samples.passes):
                places = forward.own(self._place)
                batches = samples.batches(forward, plan)
                text, length = samples.text(forward, plan), samples.padded_length(forward, plan)
                outputs = self._run(batches, text, len(places), samples.micro, length)
                for micro_batch, output in zip(places, outputs, strict=False):
                    kept = [row for row, at in enumerate(micro_batch) if at is not None]
                    sums[[micro_batch[row] for row in kept]] += output["rows"][kept].cpu()
                progress(number + 1)
        sums = sums.to(torch.cuda.current_device())
        if not (self._place.last_stage and self._place.tensor_rank == 0):
            sums.zero_()
        dist.all_reduce(sums)
        losses, tokens = sums.cpu().numpy().T
        return SampleLosses(losses, tokens)

    def _run(
        self,
        batches: list[Batch] | None,
        text: list[list[Ranges]] | None,
        micro_batches: int,
        micro: int,
        length: int,
    ) -> list[dict[str, Tensor]]:
        device = torch.cuda.current_device()
        held = [None] * micro_batches if batches is None else [batch.on_device(device) for batch in batches]
        rows: list[TextRows | None] = [None] * micro_batches
        if text is not None:
            rows = [self._chunks[0].text_rows(each, (length,)) for each in text]
        # The interleaved schedule reads the micro-batches once for each of this rank's chunks.
        iterators = [zip(held, rows, strict=True) for _ in self._modules]
        outputs: list[dict[str, Tensor]] = self._forward(
            forward_step_func=partial(_forward_step, self._place),
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=list(self._modules),
            num_microbatches=micro_batches,
            seq_length=length,
            micro_batch_size=micro,
            forward_only=True,
        )
        return outputs


def _forward_step(
    place: Place, batches: Iterator[tuple[Batch | None, TextRows | None]], model: Module
) -> tuple[Tensor, Any]:
    """megatron-core's forward step: (output, function from output to (loss sum, tokens, figures))."""
    batch, text = next(batches)
    if batch is None:
        return model(None, text=text), None
    whole = (batch.labels.size(1),)
    held = own_ranges(whole, context_rank=place.context_rank, context_size=place.context_size)
    labels = take(batch.labels, held)
    weights = labels != IGNORED_LABEL if batch.weights is None else take(batch.weights, held)
    return model(batch, labels=labels.clamp_min(0), text=text), partial(_row_losses, weights)


def _row_losses(weights: Tensor, token_losses: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """weights, token_losses [b, s] -> as a schedule wants it; `rows`, float64 [b, 2]: summed loss and weights."""
    losses = (token_losses.float() * weights).sum(dim=1, dtype=torch.float64)
    tokens = weights.sum(dim=1, dtype=torch.float64)
    rows = torch.stack([losses, tokens], dim=1)
    return losses.sum(), tokens.sum().to(torch.int), {"rows": rows}
