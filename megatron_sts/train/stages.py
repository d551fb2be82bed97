"""All stages of a recipe, one after another; each begins from the checkpoint that the one before it left."""

import gc

from megatron_sts.config import (
    Recipe,
    StageConfig,
    check_world,
    checkpoint_root,
    keys_of_stage,
    newest_run,
    read_run,
    resolved_yaml,
    step_of,
)
from megatron_sts.errors import CheckpointError, ConfigError
from megatron_sts.model.precision import Machine, check_machine
from megatron_sts.parallel.groups import Place, start_groups, stop_groups, world_size_of_environment
from megatron_sts.parallel.together import rank_zero_does
from megatron_sts.parallel.watchdog import Watchdog
from megatron_sts.sts import resolve_skip_groups
from megatron_sts.train.checkpoint_directory import remove_left_over
from megatron_sts.train.loop import Running, train_stage
from megatron_sts.train.resume import Start, find_start
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.stopping import StopReason, StopRequests

RECIPE_FILE = "recipe.yaml"


def train(recipe: Recipe, only_stage: str | None = None) -> StopReason:
    """Train the recipe's stages, or one of them, resuming from what `output_dir` holds.

    The data of every stage is read and checked before the first step of any. Returns why the run stopped before its
    end, if it did. Raises the errors of the recipe, the data and the checkpoints; on an error no rank is left waiting.
    A rank that another one keeps waiting ends its process (parallel/watchdog.py).
    """
    check_machine(recipe, Machine.here())
    check_world(recipe, world_size_of_environment())
    earlier = newest_run(recipe)
    recipe = resolve_skip_groups(recipe, earlier.recipe if earlier is not None else None, only_stage)
    if only_stage is not None:
        recipe.stage(only_stage)
    if recipe.model.init is not None:
        read_run(recipe.model.init)
    with StopRequests(recipe) as requests:
        place = start_groups(recipe.parallel, recipe.seed)
        with Watchdog(place, recipe.parallel.timeout_minutes * 60) as watchdog:
            stop = _train_stages(recipe, only_stage, place, Running(requests, watchdog))
        stop_groups()
    return stop


def _train_stages(recipe: Recipe, only_stage: str | None, place: Place, running: Running) -> StopReason:
    rank_zero_does(lambda: _open_output(recipe))
    numbers = [n for n, stage in enumerate(recipe.stages) if only_stage in (None, stage.name)]
    datas = {number: _data(recipe, recipe.stages[number]) for number in numbers}
    for number, data in datas.items():
        if number != numbers[0]:
            # Buffers and hooks of a stage refer to each other; the next one needs their memory.
            gc.collect()
        start = find_start(recipe, number, data.total_steps)
        _check_previous_ended(recipe, number, start, datas)
        with keys_of_stage(recipe.stages[number].name):
            stop = train_stage(recipe, recipe.stages[number], data, start, place, running)
        if stop:
            return stop
        gc.unfreeze()
    return StopReason.NONE


def _data(recipe: Recipe, stage: StageConfig) -> StageData:
    with keys_of_stage(stage.name):
        return StageData(recipe, stage)


def _open_output(recipe: Recipe) -> None:
    try:
        checkpoint_root(recipe).mkdir(parents=True, exist_ok=True)
        (recipe.output_dir / RECIPE_FILE).write_text(resolved_yaml(recipe))
    except OSError as error:
        raise ConfigError(
            f"output_dir: found {recipe.output_dir}, which cannot be written to ({error.filename}: {error.strerror}); "
            "make room or give the rights, or name another directory"
        ) from error
    remove_left_over(recipe)


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
