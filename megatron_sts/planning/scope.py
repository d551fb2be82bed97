"""The recipe as a run resolves it, and its stages with the lengths they will have: found as training finds them."""

from dataclasses import dataclass

from megatron_sts.config import Recipe, StageConfig, check_world, newest_run
from megatron_sts.errors import ConfigError
from megatron_sts.records import find_records
from megatron_sts.sts import StagePlanner, check_sample_count, resolve_skip_groups, stage_steps, trained_samples


@dataclass(frozen=True)
class PlannedStage:
    """A stage of training, its records (None: not known, and not needed) and its steps."""

    stage: StageConfig
    samples: int | None
    steps: int

    def planner(self, recipe: Recipe) -> StagePlanner:
        """What gives the plan of each step, under a recipe that has a stage of this name."""
        per_epoch = float(self.steps) if self.samples is None else self.samples / self.stage.batch.global_size
        return StagePlanner(recipe, recipe.stage(self.stage.name), self.steps, per_epoch)


def resolve(recipe: Recipe, data_parallel: int) -> tuple[Recipe, Recipe | None]:
    """The recipe as a run on so many data-parallel ranks would resolve it, and that of the run it goes on with.

    Raises the errors that training raises where the layout or the groups of layers cannot be.
    """
    parallel = recipe.parallel
    check_world(recipe, data_parallel * parallel.tensor * parallel.pipeline * parallel.context)
    run = newest_run(recipe)
    earlier = run.recipe if run is not None else None
    return resolve_skip_groups(recipe, earlier), earlier


def planned_stages(recipe: Recipe) -> list[PlannedStage]:
    """Every stage of a recipe.

    Data that is there is counted, else `data.samples` is taken. Raises DataError where the file cannot be
    read, ConfigError where `samples` differs from it or where neither is there and the plan depends on it.
    """
    return [_planned(stage) for stage in recipe.stages]


def _planned(stage: StageConfig) -> PlannedStage:
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
