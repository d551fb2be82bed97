"""Checks of `compress` that concern more than one field."""

from collections.abc import Iterator

from megatron_sts.config.compress_config import CompressConfig, KeepScheduleConfig
from megatron_sts.config.recipe import Recipe
from megatron_sts.config.stage_config import StageConfig


def check_compress(recipe: Recipe, stage: StageConfig) -> Iterator[str]:
    """One amount of visual tokens that fits the strategy, and no more than there are."""
    compress, field = stage.compress, f"stages.{stage.name}.compress"
    if compress is None or compress.strategy == "none":
        return
    if compress.strategy == "mean_pool":
        yield from _mean_pool_problems(recipe, compress, field)
        return
    if compress.window is not None:
        yield (
            f"{field}.window is {compress.window}, but strategy '{compress.strategy}' has no windows; "
            "remove it, or set strategy: mean_pool"
        )
    amounts = [name for name in ("keep_ratio", "keep_tokens", "schedule") if getattr(compress, name) is not None]
    if len(amounts) > 1:
        given = [name if name == "schedule" else f"{name} {getattr(compress, name):g}" for name in amounts]
        yield f"{field} gives both {' and '.join(given)}; give at most one of them"
    available = recipe.architecture.visual_tokens
    if compress.keep_tokens is not None and compress.keep_tokens > available:
        yield (
            f"{field}.keep_tokens is {compress.keep_tokens}, but the tower yields {available} visual tokens "
            f"per image; choose 1 to {available}"
        )
    if compress.schedule is not None:
        yield from _schedule_problems(compress.schedule, f"{field}.schedule")


def _mean_pool_problems(recipe: Recipe, compress: CompressConfig, field: str) -> Iterator[str]:
    for name in ("keep_ratio", "keep_tokens", "schedule"):
        if getattr(compress, name) is not None:
            yield f"{field}.{name} is given, but with strategy 'mean_pool' window decides what is kept; remove it"
    vision = recipe.architecture.vision
    if recipe.architecture.visual_tokens != vision.patches:
        yield (
            f"{field}.strategy is 'mean_pool', which needs a grid of patches, but feature_select "
            f"'{vision.feature_select}' keeps the class token too; set feature_select: default, or another strategy"
        )
    side = vision.image_size // vision.patch_size
    if compress.window is not None and compress.window > side:
        yield f"{field}.window is {compress.window}, but the tower's grid has {side} x {side} patches; lower it"


def _schedule_problems(schedule: KeepScheduleConfig, field: str) -> Iterator[str]:
    needed = {"constant": ("start",), "linear": ("start", "end"), "cosine": ("start", "end"), "steps": ("values",)}
    for name in ("start", "end", "values"):
        given = bool(getattr(schedule, name))
        if name in needed[schedule.kind] and not given:
            yield f"{field}.{name} is missing, but kind '{schedule.kind}' needs it; give shares above 0 up to 1"
        elif given and name not in needed[schedule.kind]:
            yield f"{field}.{name} is given, but kind '{schedule.kind}' does not use it; remove it"
