"""What a full step learns from: the logits of its supervised tokens under the sparse plan (arXiv 2602.03815).

Before the step its samples go forward once more, under the sparse plan and without gradients, and the last pipeline
stage keeps the logits of its supervised tokens, in the precision in which they are: for n of these on a data-parallel
rank in the step, on each tensor-parallel rank n V / t numbers, and under context parallelism its share of them.

Shapes: n supervised tokens of a micro-batch that this rank holds, V vocabulary, t tensor-parallel ranks.
"""

import torch
from torch import Tensor

from megatron_sts.data import IGNORED_LABEL
from megatron_sts.model.logits import Divergence, KeptLogits
from megatron_sts.model.mllm import MultimodalModel
from megatron_sts.parallel.chunk import places_in
from megatron_sts.parallel.exchange import send_to_owners
from megatron_sts.parallel.groups import Place
from megatron_sts.parallel.sequence import own_ranges
from megatron_sts.train.passes import Output, Passes, Supervision
from megatron_sts.train.step_input import StepInput


class Teacher:
    """The sparse forward pass of full steps; all ranks together."""

    def __init__(self, chunks: list[MultimodalModel], passes: Passes, place: Place):
        groups = chunks[-1].pg_collection
        self._passes, self._place = passes, place
        self._tensor_group, self._context_group = groups.tp, groups.cp

    def predict(self, given: StepInput) -> list[Tensor]:
        """Logits [n, V / t] of each micro-batch, for the tokens that this rank holds in the full step `given`.

        On the last pipeline stage; empty on the others.
        """
        assert given.teacher is not None
        with self._passes.evaluating(given.teacher.plan):
            found = self._passes.forward(given.teacher, _kept, lambda one: KeptLogits(one.is_supervised))
            return [self._own(number, given, one["logits"]) for number, one in enumerate(found)]

    def divergence(self, supervision: Supervision, predictions: list[Tensor]) -> Divergence:
        """Reads the KL divergence of a micro-batch from what `predict` gave, each of which is used once."""
        teacher, predictions[supervision.number] = predictions[supervision.number], torch.empty(0)
        return Divergence(supervision.is_supervised, teacher, self._tensor_group)

    def _own(self, number: int, given: StepInput, logits: Tensor) -> Tensor:
        """From the tokens that this rank held in the sparse pass to those that it holds in the full one.

        Where plans keep different numbers of visual tokens, context parallelism cuts their sequences elsewhere.
        """
        place, teacher = self._place, given.teacher
        if place.context_size == 1:
            return logits
        assert teacher is not None
        before, after = self._owners(teacher, number), self._owners(given, number)
        if torch.equal(before, after):
            return logits
        own, ranks = place.context_rank, range(place.context_size)
        # Both orders are that of the tokens, so that rows for one rank, or from one, need no number of their own.
        leaving, arriving = after[before == own], before[after == own]
        sent, received = ([int((owners == rank).sum()) for rank in ranks] for owners in (leaving, arriving))
        rows = logits[leaving.argsort(stable=True).to(logits.device)]
        moved = send_to_owners(rows, sent, received, self._context_group)
        return moved[arriving.argsort(stable=True).argsort().to(logits.device)]

    def _owners(self, given: StepInput, number: int) -> Tensor:
        """Of each supervised token of a micro-batch the context-parallel rank that holds it, in the order of rows."""
        assert given.batches is not None
        labels = given.batches[number].labels
        whole = (labels.size(1),) if given.segments is None else given.segments[number]
        positions = torch.nonzero(labels != IGNORED_LABEL)[:, 1]
        owners = torch.empty_like(positions)
        for rank in range(self._place.context_size):
            held = own_ranges(whole, context_rank=rank, context_size=self._place.context_size)
            owners[places_in(held, positions) >= 0] = rank
        return owners


def _kept(supervision: Supervision, token_losses: Tensor, reader: KeptLogits) -> Output:
    assert reader.rows is not None
    return token_losses.sum(), supervision.is_supervised.sum().to(torch.int), {"logits": reader.rows}
