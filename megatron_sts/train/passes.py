"""Micro-batches through this rank's model chunks, by megatron-core's schedule: with a backward pass or without."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from torch.nn import Module

from megatron_sts.config import Recipe
from megatron_sts.data import IGNORED_LABEL, Batch
from megatron_sts.model.data_parallel import SkippingDataParallel
from megatron_sts.model.fp8_state import fp8_state_kept
from megatron_sts.model.logits import LogitsReader
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.model.text_rows import TextRows
from megatron_sts.parallel.chunk import take
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.sequence import own_ranges
from megatron_sts.sts import StepPlan
from megatron_sts.train.step_input import StepInput


@dataclass(frozen=True)
class Supervision:
    """The labels that a context-parallel rank holds of one micro-batch: what its loss counts.

    number: of the micro-batch on this rank. labels [b, s]. weights [b, s]: of each position's loss, 0 without one.
    """

    number: int
    labels: Tensor
    weights: Tensor

    @property
    def is_supervised(self) -> Tensor:
        """bool [b, s]."""
        return self.labels != IGNORED_LABEL


Output = tuple[Tensor, Tensor, dict[str, Tensor]]
"""(summed loss, number of tokens, figures), as a schedule of megatron-core wants it."""
Loss = Callable[[Supervision, Tensor, Any], Output]
"""From a micro-batch's supervision, the loss of its tokens [b, s] and what has read its logits."""
Reader = Callable[[Supervision], LogitsReader | None]
"""What is to read the logits of a micro-batch."""


def _reads_nothing(supervision: Supervision) -> None:
    return None


class Passes:
    """Runs the micro-batches of a step on this rank; all ranks together.

    modules: what the schedules call, one for each chunk: the chunk itself, or what it is wrapped in. keeps_fp8_state:
    whether passes without a backward leave FP8's scaling histories as they were.
    """

    def __init__(
        self, chunks: list[MultimodalModel], modules: Sequence[Module], place: Place, keeps_fp8_state: bool = False
    ):
        self._chunks, self._modules, self._place = chunks, modules, place
        self._keeps_fp8_state = keeps_fp8_state
        config = chunks[0].config
        self._schedule = get_forward_backward_func(
            config.pipeline_model_parallel_size, config.virtual_pipeline_model_parallel_size
        )

    @contextmanager
    def evaluating(self, plan: StepPlan) -> Iterator[None]:
        """Passes inside are in evaluation mode under a plan, without gradients, and leave weights and FP8 state alone.

        The plan stays with the layers until another one is set, and so does the evaluation mode.
        """
        for chunk, module in zip(self._chunks, self._modules, strict=True):
            chunk.eval()
            chunk.set_plan(plan)
            if isinstance(module, SkippingDataParallel):
                module.gather_weights()
        with torch.no_grad(), fp8_state_kept(self._chunks if self._keeps_fp8_state else ()):
            yield

    def begin_training(self, plan: StepPlan) -> None:
        """Passes from now on are in training mode under a plan."""
        for chunk in self._chunks:
            chunk.train()
            if chunk.vision is not None:
                # A frozen tower is an encoder in evaluation mode; its families have no dropout to train with.
                chunk.vision.eval()
            chunk.set_plan(plan)

    def forward(self, given: StepInput, loss: Loss, reader: Reader = _reads_nothing) -> list[dict[str, Tensor]]:
        """Forward alone; the figures of each micro-batch, on the last pipeline stage."""
        return self._run(given, loss, reader, forward_only=True)

    def forward_backward(
        self, given: StepInput, loss: Loss, reader: Reader = _reads_nothing
    ) -> list[dict[str, Tensor]]:
        """Forward and backward, which adds to the gradients; figures as of `forward`."""
        return self._run(given, loss, reader, forward_only=False)

    def _run(self, given: StepInput, loss: Loss, reader: Reader, forward_only: bool) -> list[dict[str, Tensor]]:
        count, segments, device = given.micro_batches, given.segments, torch.cuda.current_device()
        held = [None] * count if given.batches is None else [batch.on_device(device) for batch in given.batches]
        apart = [None] * count if segments is None else segments
        rows: list[TextRows | None] = [None] * count
        if given.text is not None:
            whole = segments or repeat((given.length,))
            rows = [self._chunks[0].text_rows(*each) for each in zip(given.text, whole, strict=False)]
        # The interleaved schedule reads the micro-batches once for each of this rank's chunks.
        iterators = [zip(range(count), held, apart, rows, strict=True) for _ in self._modules]
        outputs: list[dict[str, Tensor]] = self._schedule(
            forward_step_func=partial(self._forward_step, loss, reader),
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=list(self._modules),
            num_microbatches=count,
            seq_length=given.length,
            micro_batch_size=given.micro if segments is None else 1,
            forward_only=forward_only,
        )
        return outputs

    def _forward_step(
        self,
        loss: Loss,
        reader: Reader,
        batches: Iterator[tuple[int, Batch | None, Sequence[int] | None, TextRows | None]],
        model: Module,
    ) -> tuple[Tensor, Any]:
        """megatron-core's forward step: (output, function from output to (loss sum, tokens, figures)).

        A context-parallel rank takes the loss of the positions that it holds.
        """
        number, batch, segments, text = next(batches)
        if batch is None:
            return model(None, segments=segments, text=text), None
        whole = segments or (batch.labels.size(1),)
        place = self._place
        held = own_ranges(whole, context_rank=place.context_rank, context_size=place.context_size)
        labels = take(batch.labels, held)
        weights = labels != IGNORED_LABEL if batch.weights is None else take(batch.weights, held)
        supervision = Supervision(number, labels, weights)
        is_last = self._chunks[self._modules.index(model)].post_process
        read_by = reader(supervision) if is_last else None
        output = model(batch, labels=labels.clamp_min(0), segments=segments, text=text, reader=read_by)
        return output, lambda token_losses: loss(supervision, token_losses, read_by)


def keeps_fp8_state(recipe: Recipe) -> bool:
    """Whether forward passes have FP8 state to keep: delayed scaling alone has some that they move."""
    return recipe.precision == "fp8" and recipe.fp8_recipe == "delayed"
