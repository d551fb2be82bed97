"""The recipe as a run resolves it, and its stages with the lengths they will have: found as training finds them."""

from collections.abc import Collection
from dataclasses import dataclass

from megatron_sts.config import Recipe, Run, StageConfig, check_world
from megatron_sts.errors import ConfigError
from megatron_sts.records import find_records
from megatron_sts.sts import (
    ResumedRecipe,
    StagePlanner,
    check_sample_count,
    resume_recipe,
    stage_steps,
    trained_samples,
    with_length,
)


@dataclass(frozen=True)
class PlannedStage:
    """A stage of training, its records (None: not known, and not needed) and its steps."""

    stage: StageConfig
    samples: int | None
    steps: int

    def planner(self, recipe: Recipe) -> StagePlanner:
        """What gives the plan of each step, under a recipe that has a stage of this name."""
        per_epoch = float(self.steps) if self.samples is None else self.samples / self.stage.batch.global_size
        stage = recipe.stage(self.stage.name).model_copy(update={"lengths": self.stage.lengths})
        return StagePlanner(recipe, stage, self.steps, per_epoch)


def resolve(recipe: Recipe, data_parallel: int, accepted: Collection[str] = ()) -> ResumedRecipe:
    """The recipe as a run on so many data-parallel ranks would resolve it, with the run that it resumes.

    accepted: the keys of `--accept`. Raises the errors that training raises where the layout or the groups of layers
    cannot be, or the run in `output_dir` cannot be resumed.
    """
    parallel = recipe.parallel
    check_world(recipe, data_parallel * parallel.tensor * parallel.pipeline * parallel.context)
    return resume_recipe(recipe, accepted)


def planned_stages(resumed: ResumedRecipe) -> list[PlannedStage]:
    """Every stage of a recipe.

    A stage that has begun has the samples that training found. Else data that is there is counted, or `data.samples`
    is taken. Raises DataError where the file cannot be read, ConfigError where `samples` differs from it or where
    neither is there and the plan depends on it.
    """
    return [_planned(stage, resumed.run_of(stage.name)) for stage in resumed.recipe.stages]


def _planned(stage: StageConfig, run: Run | None) -> PlannedStage:
    if run is not None and stage.lengths:
        stage = with_length(stage, stage.lengths[-1].samples, run)
        return PlannedStage(stage, stage.lengths[-1].samples, stage.lengths[-1].steps)
    samples = stage.data.samples
    if stage.data.train.exists():
        samples = len(find_records(stage.data.train))
        check_sample_count(stage, samples)
    if samples is not None:
        samples = trained_samples(stage, samples)
        return PlannedStage(stage, samples, stage_steps(stage, samples))
    by_epoch = any(skip.progress == "epoch" for skip in stage.skip)
    if stage.steps is None or by_epoch:
        reason = "its length in steps" if stage.steps is None else "its progress by epochs"
        raise ConfigError(
            f"stages.{stage.name}.data.train is '{stage.data.train}', which is not here, and {reason} depends on the "
            f"number of records; give stages.{stage.name}.data.samples to plan without the data"
        )
    return PlannedStage(stage, None, stage.steps)
