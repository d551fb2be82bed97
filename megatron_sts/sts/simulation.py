"""How long a training step takes in a pipeline, found by going through its dependencies.

Every pipeline rank works off forward and backward passes in a fixed order, that of megatron-core's 1F1B schedule and,
with virtual stages, of its interleaved 1F1B schedule; a pass starts when its rank is free and its input is there.
Communication costs nothing here, and neither does the optimiser.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Pass = tuple[bool, int, int]
"""One unit of a rank's work: (whether it is a forward pass, chunk of the rank, micro-batch), all 0-based."""


@dataclass(frozen=True)
class StepTime:
    """total: from the first pass to the last, in the unit of the given times. busy: by pipeline rank."""

    total: float
    busy: tuple[float, ...]

    @property
    def bubble(self) -> float:
        """Share of the ranks' time in which they wait, over the whole pipeline."""
        return 1.0 - sum(self.busy) / (len(self.busy) * self.total)


class PipelineSchedule:
    """The work of one step on `pipeline` ranks with `virtual` chunks each, in an order that keeps all dependencies.

    Virtual stage i, in order of depth, is chunk i // pipeline of rank i % pipeline.
    """

    def __init__(self, pipeline: int, virtual: int, micro_batches: int):
        """With virtual stages the micro-batches must be a multiple of the ranks, as megatron-core demands."""
        assert pipeline >= 1 and virtual >= 1 and micro_batches >= 1
        assert virtual == 1 or micro_batches % pipeline == 0
        self._pipeline, self._virtual, self.micro_batches = pipeline, virtual, micro_batches
        self.passes = 2 * pipeline * virtual * micro_batches
        # (rank, place in forward times then backward times, place of the pass it waits for or -1) of every pass
        self._order = self._sorted_passes()

    def simulate(self, forward: Sequence[float], backward: Sequence[float]) -> StepTime:
        """The step whose passes through one micro-batch take these times, by virtual stage in order of depth."""
        stages = self._pipeline * self._virtual
        assert len(forward) == len(backward) == stages
        times = [*forward, *backward]
        free = [0.0] * self._pipeline
        ended: list[float] = []
        for rank, timed, awaited in self._order:
            start = free[rank]
            if awaited >= 0 and ended[awaited] > start:
                start = ended[awaited]
            start += times[timed]
            free[rank] = start
            ended.append(start)
        busy = tuple(
            self.micro_batches * sum(forward[stage] + backward[stage] for stage in range(rank, stages, self._pipeline))
            for rank in range(self._pipeline)
        )
        return StepTime(max(free), busy)

    def _sorted_passes(self) -> list[tuple[int, int, int]]:
        stages = self._pipeline * self._virtual
        orders = [rank_order(rank, self._pipeline, self._virtual, self.micro_batches) for rank in range(self._pipeline)]
        done = [0] * self._pipeline
        places: dict[tuple[bool, int, int], int] = {}
        passes: list[tuple[int, int, int]] = []
        while len(passes) < self.passes:
            before = len(passes)
            for rank, order in enumerate(orders):
                while done[rank] < len(order):
                    forward, chunk, micro_batch = order[done[rank]]
                    stage = chunk * self._pipeline + rank
                    awaited = _awaited(forward, stage, micro_batch, stages)
                    if awaited is not None and awaited not in places:
                        break
                    places[forward, stage, micro_batch] = len(passes)
                    passes.append((rank, stage if forward else stages + stage, places[awaited] if awaited else -1))
                    done[rank] += 1
            assert len(passes) > before, "the schedule waits for itself"
        return passes


def _awaited(forward: bool, stage: int, micro_batch: int, stages: int) -> tuple[bool, int, int] | None:
    """The pass that another one waits for: (forward, virtual stage, micro-batch)."""
    if forward:
        return (True, stage - 1, micro_batch) if stage else None
    # The last stage goes on from its own forward pass.
    return (False, stage + 1, micro_batch) if stage < stages - 1 else (True, stage, micro_batch)


def rank_order(rank: int, pipeline: int, virtual: int, micro_batches: int) -> list[Pass]:
    """The passes of a pipeline rank in the order of megatron-core 0.16 (pipeline_parallel/schedules.py).

    Forward passes that warm the pipeline up, then one forward and one backward by turns, then the backward passes
    that are left. With virtual stages, `pipeline` micro-batches at a time go through every chunk.
    """
    if virtual == 1:
        warm_up = pipeline - rank - 1
        table = [(0, micro_batch) for micro_batch in range(micro_batches)]
    else:
        warm_up = 2 * (pipeline - rank - 1) + (virtual - 1) * pipeline
        table = [
            (chunk, micro_batch)
            for first in range(0, micro_batches, pipeline)
            for chunk in range(virtual)
            for micro_batch in range(first, first + pipeline)
        ]
    warm_up = min(warm_up, len(table))
    forward = [(True, chunk, micro_batch) for chunk, micro_batch in table]
    backward = [(False, virtual - 1 - chunk, micro_batch) for chunk, micro_batch in table]
    steady = [one for pair in zip(forward[warm_up:], backward, strict=False) for one in pair]
    return [*forward[:warm_up], *steady, *backward[len(table) - warm_up :]]
