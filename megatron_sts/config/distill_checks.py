"""What `distill` must be, in the blocks that make a stage sparse."""

from collections.abc import Iterator

from megatron_sts.config.recipe import Recipe
from megatron_sts.config.stage_config import StageConfig


def check_distill(recipe: Recipe, stage: StageConfig) -> Iterator[str]:
    """Distillation is of full steps, and a step has one term of it."""
    given = {field: block for field, block in stage.sparse_blocks.items() if block.distill}
    for field, block in given.items():
        if not block.full_share:
            yield (
                f"{field}.distill is {block.distill:g}, but {field}.full_share is 0 and there are no full steps to "
                "distill into; set full_share, for example 0.1, or remove distill"
            )
    weights = {block.distill for block in given.values()}
    if len(weights) > 1:
        found = ", ".join(f"{field}.distill {block.distill:g}" for field, block in given.items())
        yield f"stages.{stage.name} gives {found}, but a step has one such term; give the same weight"
