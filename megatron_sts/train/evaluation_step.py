"""The loss of samples under a StepPlan by forward passes alone: no weight changes, no dropout, equal on all layouts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

from megatron_sts.config import Recipe
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.groups import Place
from megatron_sts.sts import StepPlan
from megatron_sts.train.held_out import HeldOutSamples
from megatron_sts.train.passes import Output, Passes, Supervision, keeps_fp8_state
from megatron_sts.train.step_input import StepInput


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
        self._place = place
        self._passes = Passes(chunks, modules, place, keeps_fp8_state(recipe))

    def losses(
        self, plan: StepPlan, samples: HeldOutSamples, progress: Callable[[int], None] = lambda passes: None
    ) -> SampleLosses:
        """The loss of each sample under a plan, the same on every rank; all ranks together.

        progress: told how many forward passes are done. The plan stays with the layers until the next step sets its
        own, and so does the evaluation mode.
        """
        sums = torch.zeros(len(samples), 2, dtype=torch.float64)
        with self._passes.evaluating(plan):
            for number, forward in enumerate(samples.passes):
                places = forward.own(self._place)
                batches, text = samples.batches(forward, plan), samples.text(forward, plan)
                length = samples.padded_length(forward, plan)
                given = StepInput(plan, batches, len(places), samples.micro, length, text=text)
                outputs = self._passes.forward(given, _row_losses)
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


def _row_losses(supervision: Supervision, token_losses: Tensor, reader: object) -> Output:
    """token_losses [b, s] -> as a schedule wants it; `rows`, float64 [b, 2]: summed loss and weights."""
    weights = supervision.weights
    losses = (token_losses.float() * weights).sum(dim=1, dtype=torch.float64)
    tokens = weights.sum(dim=1, dtype=torch.float64)
    rows = torch.stack([losses, tokens], dim=1)
    return losses.sum(), tokens.sum().to(torch.int), {"rows": rows}
