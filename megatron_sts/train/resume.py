"""Where a stage begins: which checkpoint is whole, and whether the recipe may go on from it."""

from dataclasses import dataclass
from pathlib import Path

from megatron_sts.config import Recipe, Run, checkpoints_of_stage, difference, problems_of, read_run, step_of
from megatron_sts.errors import CheckpointError
from megatron_sts.parallel.together import from_all_ranks, own_part

# What a resumed run may change; anything else would not be the same training.
_MAY_CHANGE = (
    "output_dir",
    "parallel.",
    "logging.",
    "checkpoint.",
    "on_save_error",
    "recompute",
    "stop_after",
    "bad_steps.",
    "loss_spike",
    "optimizer.distributed",
    "model.vision",
    "model.tokenizer",
    "model.init",
)
_STAGE_MAY_CHANGE = (
    "data.train",
    "data.images",
    "data.workers",
    "data.max_bad_records",
    "data.packing",
    "data.samples",
    "data.text_tokens",
    "batch.micro",
)
# A damaged file tells all; a checkpoint of thousands of files need not list each.
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Start:
    """Where a stage begins: the checkpoint to load (None: fresh weights) and the steps of this stage it has done.

    notes: what a user should know of it, a line each: checkpoints passed over, fields of the recipe that changed.
    """

    checkpoint: Path | None
    step: int
    resumes: bool
    notes: tuple[str, ...] = ()


def find_start(recipe: Recipe, stage_number: int, total_steps: int) -> Start:
    """Where a stage begins: its own newest whole checkpoint, else the previous stage's end, else `model.init`.

    All ranks together. Raises CheckpointError where the checkpoint is damaged, where the recipe differs from the
    checkpoint's, where it has done more steps than the stage has, or where the previous stage has not ended.
    """
    stage = recipe.stages[stage_number]
    own, notes = newest_whole(recipe, stage.name)
    if own is not None:
        run = read_run(own)
        changed = check_resumable(own, run, recipe)
        if run.step > total_steps:
            raise CheckpointError(
                f"{own} has done {run.step} steps, but with the data of now the stage has {total_steps}; give it the "
                f"data that it was begun with (stages.{stage.name}.data), or choose another output_dir to start anew"
            )
        return Start(own, run.step, resumes=True, notes=(*notes, *changed))
    if stage_number == 0:
        if recipe.model.init is not None:
            _refuse_damaged(recipe.model.init, problems_together(recipe.model.init), "import or copy it again")
        return Start(recipe.model.init, 0, resumes=False)
    previous = recipe.stages[stage_number - 1]
    ended, notes = newest_whole(recipe, previous.name)
    if ended is None:
        raise CheckpointError(
            f"stage {stage.name} begins where {previous.name} ends, but {recipe.output_dir} has no checkpoint of "
            f"{previous.name}; train it first (--stage {previous.name}), or remove --stage"
        )
    return Start(ended, 0, resumes=False, notes=notes)


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


def check_resumable(path: Path, run: Run, recipe: Recipe) -> list[str]:
    """The fields that a resumed run changes, with their values; CheckpointError where one of them may not change.

    The layout, where files lie, logging and what bears on memory alone may change, and other stages altogether.
    """
    old, new = run.recipe.resolved(), recipe.resolved()
    changed = difference(old, new)
    refused = [field for field in changed if not _may_change(field, run.stage)]
    if refused:
        told = ", ".join(f"{field} ({_value(old, field)}, now {_value(new, field)})" for field in sorted(refused))
        raise CheckpointError(
            f"{path} was trained with other values of {told}; put them back, or choose another output_dir to start anew"
        )
    return [f"changed since the checkpoint: {field} {_value(old, field)} -> {_value(new, field)}" for field in changed]


def _may_change(field: str, stage: str) -> bool:
    if field.startswith("stages."):
        _, name, rest = [*field.split(".", 2), ""][:3]
        return name != stage or rest.startswith(_STAGE_MAY_CHANGE)
    return field.startswith(_MAY_CHANGE)


def _value(resolved: object, field: str) -> str:
    """The value of a dotted field as `difference` names it; stages are found by name."""
    value = resolved
    for key in field.split("."):
        if isinstance(value, list):
            value = next((item for item in value if isinstance(item, dict) and item.get("name") == key), None)
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return "none" if value is None else str(value)
