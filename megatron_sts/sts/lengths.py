"""The lengths of a stage: one, unless a resume has changed it; then each holds from a step on.

The plan of a step that is done never changes, so the lengths it was planned with stay in the checkpoint.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from megatron_sts.config import Run, StageConfig, StageLength, is_accepted
from megatron_sts.errors import CheckpointError
from megatron_sts.sts.steps import stage_steps


def with_length(
    stage: StageConfig, samples: int, run: Run | None = None, accepted: Collection[str] = ()
) -> StageConfig:
    """The stage with its lengths over so many samples written out, for good.

    run: of the checkpoint that the stage resumes from, whose lengths are kept. accepted: the keys of `--accept`.
    Raises CheckpointError where the samples are not those that the stage was begun with, or more steps are done than
    it has.
    """
    steps = stage_steps(stage, samples)
    if run is None:
        return stage.model_copy(update={"lengths": (StageLength(from_step=0, steps=steps, samples=samples),)})
    kept = lengths_of(run, samples)
    field = f"stages.{stage.name}.data.train"
    if samples != kept[-1].samples and not is_accepted(field, accepted):
        raise CheckpointError(
            f"{field}: found {samples:,} samples to train on in {stage.data.train}, but the stage was begun with "
            f"{kept[-1].samples:,}; give it that data, or, to go on with the samples of the new data in an order of "
            f"their own, --accept {field}"
        )
    if run.step > steps:
        raise CheckpointError(
            f"stages.{stage.name} has {steps:,} steps, but {run.step:,} are done; make it at least that long, or "
            "choose another output_dir to start anew"
        )
    if (steps, samples) != (kept[-1].steps, kept[-1].samples):
        before = tuple(length for length in kept if length.from_step < run.step)
        kept = (*before, StageLength(from_step=run.step, steps=steps, samples=samples))
    return stage.model_copy(update={"lengths": kept})


def lengths_of(run: Run, samples: int) -> tuple[StageLength, ...]:
    """The lengths of a checkpoint's stage; where an earlier version has not written them, the one by its recipe."""
    stage = run.recipe.stage(run.stage)
    return stage.lengths or (StageLength(from_step=0, steps=stage_steps(stage, samples), samples=samples),)


class Span(NamedTuple):
    """A length of a stage: the 0-based step from which it holds, its steps, and those of an epoch."""

    from_step: int
    steps: int
    steps_per_epoch: float


def spans(stage: StageConfig) -> tuple[Span, ...]:
    """The lengths that a stage has had, oldest first; none before training has written them."""
    return tuple(
        Span(length.from_step, length.steps, length.samples / stage.batch.global_size) for length in stage.lengths
    )


def progress(lengths: Sequence[Span], step: int, by_epochs: bool = False) -> float:
    """e / E of the schedules of sparsity at a 0-based step, in [0, 1]: by steps, or by whole epochs passed.

    From a step at which the length changed it goes on from where it stood, to be 1 at the new end.
    """
    number = next(index for index in reversed(range(len(lengths))) if lengths[index].from_step <= step)
    length = lengths[number]
    here = _under_one(length, step, by_epochs)
    if number == 0:
        return here
    passed = progress(lengths[:number], length.from_step, by_epochs)
    start = _under_one(length, length.from_step, by_epochs)
    return min(1.0, passed + (1.0 - passed) * (here - start) / (1.0 - start)) if start < 1.0 else passed


def _under_one(length: Span, step: int, by_epochs: bool) -> float:
    if not by_epochs:
        return min(1.0, step / length.steps)
    epochs = length.steps / length.steps_per_epoch
    return min(1.0, (step // length.steps_per_epoch) / max(epochs, 1.0))
