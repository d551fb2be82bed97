"""All stages of a recipe, one after another; each begins from the checkpoint that the one before it left."""

import gc
from collections.abc import Collection

from megatron_sts.config import Recipe, Run, StageConfig, check_world, keys_of_stage, read_run, step_of
from megatron_sts.errors import CheckpointError
from megatron_sts.model.precision import Machine, check_machine
from megatron_sts.parallel.groups import Place, start_groups, stop_groups, world_size_of_environment
from megatron_sts.parallel.watchdog import Watchdog
from megatron_sts.sts import ResumedRecipe, resume_recipe
from megatron_sts.train.loop import Running, train_stage
from megatron_sts.train.output_directory import check_output_directory
from megatron_sts.train.progress import check_figure_sinks
from megatron_sts.train.resume import Start, find_start
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.stopping import StopReason, StopRequests


def train(recipe: Recipe, only_stage: str | None = None, accepted: Collection[str] = ()) -> StopReason:
    """Train the recipe's stages, or one of them, resuming from what `output_dir` holds.

    accepted: keys that a resume may change by the user's word (`--accept`). The data of every stage is read and checked
    before the first step of any; a start that is refused changes nothing in `output_dir`. Returns why the run stopped
    before its end, if it did. Raises the errors of the recipe, the data and the checkpoints; on an error no rank is
    left waiting. A rank that another one keeps waiting ends its process (parallel/watchdog.py).
    """
    check_machine(recipe, Machine.here())
    check_world(recipe, world_size_of_environment())
    check_figure_sinks(recipe)
    if only_stage is not None:
        recipe.stage(only_stage)
    resumed = resume_recipe(recipe, accepted, only_stage)
    if recipe.model.init is not None:
        read_run(recipe.model.init)
    check_output_directory(recipe)
    with StopRequests(recipe) as requests:
        place = start_groups(recipe.parallel, recipe.seed)
        with Watchdog(place, recipe.parallel.timeout_minutes * 60) as watchdog:
            stop = _train_stages(resumed, accepted, only_stage, place, Running(requests, watchdog))
        stop_groups()
    return stop


def _train_stages(
    resumed: ResumedRecipe, accepted: Collection[str], only_stage: str | None, place: Place, running: Running
) -> StopReason:
    recipe, numbers = resumed.recipe, []
    for number, stage in enumerate(recipe.stages):
        if only_stage not in (None, stage.name):
            continue
        later = resumed.begun_after(stage.name)
        if later is None:
            numbers.append(number)
        elif place.rank == 0:
            print(f"{stage.name}: done, {later} has begun from its end", flush=True)
    if not numbers:
        return StopReason.NONE
    first = find_start(recipe, numbers[0], accepted)
    datas = {
        number: _data(recipe, recipe.stages[number], first.run if number == numbers[0] else None, accepted)
        for number in numbers
    }
    _check_previous_ended(recipe, numbers[0], first, datas)
    stages = tuple(datas[number].stage if number in datas else stage for number, stage in enumerate(recipe.stages))
    recipe = recipe.model_copy(update={"stages": stages})
    for number, data in datas.items():
        start = first
        if number != numbers[0]:
            # Buffers and hooks of a stage refer to each other; the next one needs their memory.
            gc.collect()
            start = find_start(recipe, number, accepted)
            _check_previous_ended(recipe, number, start, datas)
        with keys_of_stage(recipe.stages[number].name):
            stop = train_stage(recipe, recipe.stages[number], data, start, place, running)
        if stop:
            return stop
        gc.unfreeze()
    return StopReason.NONE


def _data(recipe: Recipe, stage: StageConfig, run: Run | None = None, accepted: Collection[str] = ()) -> StageData:
    with keys_of_stage(stage.name):
        return StageData(recipe, stage, run, accepted)


def _check_previous_ended(recipe: Recipe, number: int, start: Start, datas: dict[int, StageData]) -> None:
    """What a stage begins from must be the end of the stage before, also when only this one is asked for."""
    if number == 0 or start.resumes:
        return
    assert start.checkpoint is not None
    previous = recipe.stages[number - 1]
    data = datas.get(number - 1) or _data(recipe, previous)
    done = step_of(start.checkpoint)
    if done < data.total_steps:
        raise CheckpointError(
            f"stage {previous.name} has done {done} of {data.total_steps} steps in {recipe.output_dir}; "
            f"finish it before {recipe.stages[number].name} (--stage {previous.name})"
        )
