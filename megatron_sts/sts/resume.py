"""The recipe as the run in its `output_dir` goes on with it: the one check of training and of planning."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from megatron_sts.config import Recipe, Run, check_accepted, check_resumable, newest_runs
from megatron_sts.errors import CheckpointError
from megatron_sts.sts.groups import resolve_skip_groups


@dataclass(frozen=True)
class ResumedRecipe:
    """recipe: with its groups of layers resolved. begun: of each stage that has checkpoints the newest, in order."""

    recipe: Recipe
    begun: dict[str, tuple[Path, Run]]

    @property
    def earlier(self) -> Recipe | None:
        """The resolved recipe of the run that is resumed, each stage as its own checkpoint has it; None without one."""
        newest = next((run.recipe for _, run in reversed(self.begun.values())), None)
        if newest is None:
            return None
        known = [self.run_of(stage.name) for stage in newest.stages]
        stages = [
            stage if run is None else run.recipe.stage(stage.name)
            for stage, run in zip(newest.stages, known, strict=True)
        ]
        return newest.model_copy(update={"stages": tuple(stages)})

    def run_of(self, stage: str) -> Run | None:
        """What the newest checkpoint of a stage says of itself; None where there is none."""
        return self.begun[stage][1] if stage in self.begun else None

    def begun_after(self, stage: str) -> str | None:
        """The last stage that has begun, where that is a later one: then this one is over."""
        names = [one.name for one in self.recipe.stages]
        last = next(reversed(self.begun), None)
        return last if last is not None and names.index(last) > names.index(stage) else None


def resume_recipe(recipe: Recipe, accepted: Collection[str] = (), only_stage: str | None = None) -> ResumedRecipe:
    """Compare a recipe with the checkpoints in its `output_dir`, from their run.json alone, and resolve it.

    accepted: the keys of `--accept`. only_stage: the stage that is trained; all where None. Raises CheckpointError
    where a stage cannot be resumed under the recipe, ConfigError where the layout cannot have the groups of layers.
    """
    check_accepted(recipe, accepted)
    begun = newest_runs(recipe)
    earlier = ResumedRecipe(recipe, begun).earlier
    resumed = ResumedRecipe(_with_lengths(resolve_skip_groups(recipe, earlier, only_stage), begun), begun)
    for stage in resumed.recipe.stages:
        if only_stage not in (None, stage.name):
            continue
        later = resumed.begun_after(stage.name)
        if stage.name in begun:
            check_resumable(*begun[stage.name], resumed.recipe, accepted, later)
        elif later is not None:
            _check_was_there(stage.name, later, *begun[later])
    return resumed


def _with_lengths(recipe: Recipe, begun: dict[str, tuple[Path, Run]]) -> Recipe:
    """The recipe with the lengths that its stages have had so far: none for one that has not begun."""
    known = {name: run.recipe.stage(name).lengths for name, (_, run) in begun.items()}
    stages = tuple(stage.model_copy(update={"lengths": known.get(stage.name, ())}) for stage in recipe.stages)
    return recipe.model_copy(update={"stages": stages})


def _check_was_there(stage: str, later: str, checkpoint: Path, run: Run) -> None:
    """A stage without checkpoints is over where the run had it before one that has begun; it cannot come in between."""
    names = [one.name for one in run.recipe.stages]
    if stage not in names[: names.index(later)]:
        raise CheckpointError(
            f"stages.{stage} comes before {later}, which has begun without it ({checkpoint}); put it behind {later}, "
            "or choose another output_dir to start anew"
        )
