"""Where a stage begins: the newest whole checkpoint, its own or the previous stage's."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from megatron_sts.config import Recipe, Run, check_resumable, checkpoints_of_stage, problems_of, read_run, step_of
from megatron_sts.errors import CheckpointError
from megatron_sts.parallel.together import from_all_ranks, own_part

# A damaged file tells all; a checkpoint of thousands of files need not list each.
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Start:
    """Where a stage begins: the checkpoint to load (None: fresh weights) and the steps of this stage it has done.

    run: what the checkpoint says of itself, where it is one of this stage. notes: what a user should know, a line each:
    checkpoints passed over, keys of the recipe that changed.
    """

    checkpoint: Path | None
    step: int
    run: Run | None = None
    notes: tuple[str, ...] = ()

    @property
    def resumes(self) -> bool:
        """Whether the checkpoint is one of this stage, with its optimiser's state."""
        return self.run is not None


def find_start(recipe: Recipe, stage_number: int, accepted: Collection[str] = ()) -> Start:
    """Where a stage begins: its own newest whole checkpoint, else the previous stage's end, else `model.init`.

    All ranks together. accepted: the keys of `--accept`. Raises CheckpointError where the checkpoint is damaged, where
    the recipe differs from the checkpoint's, or where the previous stage has no checkpoint.
    """
    stage = recipe.stages[stage_number]
    own, notes = newest_whole(recipe, stage.name)
    if own is not None:
        run = read_run(own)
        changed = check_resumable(own, run, recipe, accepted)
        return Start(own, run.step, run, (*notes, *changed))
    if stage_number == 0:
        if recipe.model.init is not None:
            _refuse_damaged(recipe.model.init, problems_together(recipe.model.init), "import or copy it again")
        return Start(recipe.model.init, 0)
    ended, notes = _end_of_previous(recipe, stage_number, "train it first (--stage {}), or remove --stage")
    return Start(ended, 0, notes=notes)


def origin_of(recipe: Recipe, stage_number: int) -> Path | None:
    """The checkpoint that a stage begins from, whether or not it has begun; None: fresh weights. All ranks together."""
    if stage_number == 0:
        return recipe.model.init
    return _end_of_previous(recipe, stage_number, "train it first, or give --checkpoint")[0]


def _end_of_previous(recipe: Recipe, stage_number: int, remedy: str) -> tuple[Path, tuple[str, ...]]:
    """The newest whole checkpoint of the stage before, and what was passed over. remedy: `{}` stands for that stage."""
    stage, previous = recipe.stages[stage_number].name, recipe.stages[stage_number - 1].name
    ended, notes = newest_whole(recipe, previous)
    if ended is None:
        raise CheckpointError(
            f"stage {stage} begins where {previous} ends, but {recipe.output_dir} has no checkpoint of {previous}; "
            + remedy.format(previous)
        )
    return ended, notes


def newest_whole(recipe: Recipe, stage: str) -> tuple[Path | None, tuple[str, ...]]:
    """The newest checkpoint of a stage that is as its manifest says, and a note for each that was passed over.

    All ranks together. Raises CheckpointError where a damaged one may not be passed over (`checkpoint.allow_older`),
    or where there are checkpoints and none is whole.
    """
    notes: list[str] = []
    found = checkpoints_of_stage(recipe, stage)
    for number in reversed(range(len(found))):
        path, older = found[number], found[number - 1] if number else None
        problems = problems_together(path)
        if not problems:
            return path, tuple(notes)
        if older is None:
            remedy = "no older one is there; remove it to begin the stage anew"
        else:
            lost = step_of(path) - step_of(older)
            remedy = f"set checkpoint.allow_older: true to go on from {older} and do {lost} steps again"
        if older is None or not recipe.checkpoint.allow_older:
            _refuse_damaged(path, problems, remedy)
        notes.append(f"passed over {path}, which is damaged: {'; '.join(problems[:_PROBLEMS_SHOWN])}")
    return None, ()


def problems_together(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint's files, the same on every rank; each rank reads its share of them."""
    return [problem for found in from_all_ranks(problems_of(checkpoint, *own_part())) for problem in found]


def _refuse_damaged(path: Path, problems: list[str], remedy: str) -> None:
    if problems:
        shown = [*problems[:_PROBLEMS_SHOWN], *(["..."] if len(problems) > _PROBLEMS_SHOWN else [])]
        # Ranks that share a reason (no manifest) give it once.
        raise CheckpointError(f"{path} is damaged: {'; '.join(dict.fromkeys(shown))}; {remedy}")
