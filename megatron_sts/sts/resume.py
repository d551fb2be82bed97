"""The recipe as the run in its `output_dir` goes on with it: the one check of training and of planning."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from megatron_sts.config import Recipe, Run, check_accepted, check_resumable, is_accepted, newest_runs
from megatron_sts.errors import CheckpointError
from megatron_sts.sts.groups import resolve_skip_groups


@dataclass(frozen=True)
class ResumedRecipe:
    """recipe: with its groups of layers resolved. begun: of each stage that has checkpoints the newest, in order."""

    recipe: Recipe
    begun: dict[str, tuple[Path, Run]]

    @property
    def earlier(self) -> Recipe | None:
        """Of the recipe the stages that have begun, whose groups of layers no layout changes; None where none has."""
        stages = tuple(stage for stage in self.recipe.stages if stage.name in self.begun)
        return self.recipe.model_copy(update={"stages": stages}) if stages else None

    def run_of(self, stage: str) -> Run | None:
        """What the newest checkpoint of a stage says of itself; None where there is none."""
        return self.begun[stage][1] if stage in self.begun else None

    def begun_after(self, stage: str) -> str | None:
        """The last stage that has begun, where that is a later one: then this one is over."""
        return _begun_after(self.recipe, self.begun, stage)


def resume_recipe(recipe: Recipe, accepted: Collection[str] = (), only_stage: str | None = None) -> ResumedRecipe:
    """Compare a recipe with the checkpoints in its `output_dir`, from their run.json alone, and resolve it.

    accepted: the keys of `--accept`. only_stage: the stage that is trained; all where None. Raises CheckpointError
    where a stage cannot be resumed under the recipe, ConfigError where the layout cannot have the groups of layers.
    """
    check_accepted(recipe, accepted)
    begun = newest_runs(recipe)
    later = {stage.name: _begun_after(recipe, begun, stage.name) for stage in recipe.stages}
    trained = [name for name in later if only_stage in (None, name) and later[name] is None]
    recipe = resolve_skip_groups(recipe, _earlier(begun), trained, _regrouped(recipe, begun, accepted))
    recipe = _with_lengths(recipe, begun)
    for stage in recipe.stages:
        if only_stage not in (None, stage.name):
            continue
        begun_later = later[stage.name]
        if stage.name in begun:
            check_resumable(*begun[stage.name], recipe, accepted, begun_later)
        elif begun_later is not None:
            _check_was_there(stage.name, begun_later, *begun[begun_later])
    return ResumedRecipe(recipe, begun)


def _begun_after(recipe: Recipe, begun: dict[str, tuple[Path, Run]], stage: str) -> str | None:
    names = [one.name for one in recipe.stages]
    last = next(reversed(begun), None)
    return last if last is not None and names.index(last) > names.index(stage) else None


def _earlier(begun: dict[str, tuple[Path, Run]]) -> Recipe | None:
    """The resolved recipe of the run, with the stages that have begun, each as its own checkpoint has it."""
    newest = next((run.recipe for _, run in reversed(begun.values())), None)
    if newest is None:
        return None
    stages = tuple(run.recipe.stage(name) for name, (_, run) in begun.items())
    return newest.model_copy(update={"stages": stages})


def _regrouped(recipe: Recipe, begun: dict[str, tuple[Path, Run]], accepted: Collection[str]) -> dict[str, int]:
    """Of each skip whose groups may change by the user's word: its field, and the steps done."""
    return {
        stage.skip_field(skip): begun[stage.name][1].step
        for stage in recipe.stages
        for skip in stage.skip
        if stage.name in begun and is_accepted(f"{stage.skip_field(skip)}.skip_groups", accepted)
    }


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
