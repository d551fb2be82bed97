"""Checks the data of a recipe's stages as the stages would read it."""

from functools import partial
from pathlib import Path
from typing import Any

from megatron_sts.config import Recipe, StageConfig
from megatron_sts.data.check import check_data
from megatron_sts.data.check_lengths import TextSettings
from megatron_sts.data.padding import describe_steps
from megatron_sts.data.prepared import allowed_bad_records
from megatron_sts.data.templates import find_template
from megatron_sts.data.tokenizer import load_tokenizer
from megatron_sts.data.workers import StartProgress, untold
from megatron_sts.errors import ConfigError
from megatron_sts.sts import StagePlanner


def stages_to_check(recipe: Recipe, name: str | None, data: Path | None) -> list[StageConfig]:
    """The stage of that name, else those that read `data`, else all.

    Raises ConfigError where there is no such stage, or where none reads `data` and several might be meant.
    """
    if name is not None:
        return [recipe.stage(name)]
    if data is None or len(recipe.stages) == 1:
        return list(recipe.stages)
    found = [stage for stage in recipe.stages if stage.data.train.resolve() == data.resolve()]
    if not found:
        names = ", ".join(stage.name for stage in recipe.stages)
        raise ConfigError(f"{data}: no stage of the recipe reads it; choose one of {names} with --stage")
    return found


def check_stage_data(
    recipe: Recipe,
    stage: StageConfig,
    data: Path | None = None,
    images: Path | None = None,
    decodes: bool = True,
    workers: int = 0,
    progress: StartProgress = untold,
    usable_file: Path | None = None,
) -> dict[str, Any]:
    """`check_data` with a stage's settings, and the stage's name. data, images: instead of the stage's own."""
    tokenizer = load_tokenizer(recipe)
    settings = stage.data
    kept_tokens = StagePlanner(recipe, stage, 1, 1.0).most_visual_tokens()
    text = TextSettings(
        tokenizer,
        find_template(settings.template, tokenizer),
        settings.system_prompt,
        visual_tokens=recipe.architecture.visual_tokens,
        kept_tokens=kept_tokens,
        max_tokens=settings.max_tokens,
        too_long=settings.too_long,
        describe=partial(describe_steps, recipe, stage, visual_tokens=kept_tokens),
    )
    pads = settings.image_aspect_ratio == "pad"
    given = (data or settings.train, images or settings.images)
    report = check_data(*given, text, pads, decodes, workers, progress, usable_file, needs_folder=True)
    allowed = allowed_bad_records(settings.max_bad_records, report["records"])
    return {"stage": stage.name, "max_bad_records": allowed, **report}
