"""What a rank is given for one step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_sts.data import Batch
from megatron_sts.parallel.sequence import Ranges
from megatron_sts.sts import StepPlan


@dataclass(frozen=True)
class StepInput:
    """The micro-batches of a rank in one step, and what all ranks know of them.

    batches: this rank's micro-batches, None on middle pipeline stages, which read none. micro_batches, micro: their
    number and size. length: padded sequence length of the step, the same on all ranks. segments: where samples are
    packed, of each micro-batch's one row the lengths that attention keeps apart. text: of each micro-batch the
    positions of text in its rows, where the plan skips layers for visual tokens. Both on all pipeline stages.
    teacher: in a step that distills, the same samples under the sparse plan whose predictions it learns from.
    """

    plan: StepPlan
    batches: Sequence[Batch] | None
    micro_batches: int
    micro: int
    length: int
    segments: Sequence[Sequence[int]] | None = None
    text: Sequence[Sequence[Ranges]] | None = None
    teacher: "StepInput | None" = None

    def all_batches(self) -> Iterator[Batch]:
        """Those of the step and of its teacher."""
        yield from self.batches or ()
        if self.teacher is not None:
            yield from self.teacher.all_batches()
