"""Whether a run may go on from a checkpoint under a recipe: what differs between the two, by the table of keys."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from megatron_sts.config.recipe import Recipe
from megatron_sts.config.resolved import difference, entry_name
from megatron_sts.config.resume_table import RESUME_TABLE, OnResume, in_table, resume_rule
from megatron_sts.config.run_file import Run
from megatron_sts.config.suggestion import suggestion
from megatron_sts.errors import CheckpointError, ConfigError

# One change of a stage's length may show in both.
_LENGTH_KEYS = ("epochs", "steps")


def check_accepted(recipe: Recipe, accepted: Collection[str]) -> None:
    """Raise ConfigError where `--accept` names what is no key of the recipe, or what no word makes acceptable."""
    for field in accepted:
        parts = field.split(".")
        if parts[0] == "stages" and len(parts) > 2:
            recipe.stage(parts[1])
        known = {key for rule in RESUME_TABLE for key in rule.keys}
        key = in_table(field)
        if key not in known and not any(other.startswith(f"{key}.") for other in known):
            raise ConfigError(f"--accept {field}: no such key{suggestion(key, known)} give it as a message names it")
        rule = resume_rule(field)
        if rule.does is OnResume.REFUSED:
            raise ConfigError(f"--accept {field}: no run can go on under another value of it: {rule.why}")


def is_accepted(field: str, accepted: Collection[str]) -> bool:
    """Whether `--accept` names a dotted field, a block around it, or, of a length, the other key."""
    names = {field}
    block, _, key = field.rpartition(".")
    if field.startswith("stages.") and key in _LENGTH_KEYS and field.count(".") == 2:
        names = {f"{block}.{other}" for other in _LENGTH_KEYS}
    return any(name == one or name.startswith(f"{one}.") for name in names for one in accepted)


def check_resumable(
    path: Path, run: Run, recipe: Recipe, accepted: Collection[str] = (), begun_later: str | None = None
) -> tuple[str, ...]:
    """The keys that a resume of `run`'s stage from the checkpoint `path` changes, one line each with both values.

    accepted: the keys of `--accept`. begun_later: a stage that has begun from this one's end; then this stage is over,
    and of what differs only its own keys count. Raises CheckpointError where a key may not differ.
    """
    old, new = run.recipe.resolved(), recipe.resolved()
    own = f"stages.{run.stage}."
    changes, refusals = [], []
    for field in difference(old, new):
        told = f"{field}: {_value(old, field)} in the checkpoint, {_value(new, field)} in the recipe"
        of_other_stage = field.startswith("stages.") and not field.startswith(own)
        does, why = _rule(field)
        if does is OnResume.KEPT:
            continue
        if of_other_stage or (begun_later and not field.startswith(own)) or does is OnResume.ALLOWED:
            changes.append(told)
        elif begun_later:
            refusals.append(f"{told}. Stage {run.stage} is over: {begun_later} has begun from its end")
        elif does is OnResume.ACCEPT and is_accepted(field, accepted):
            changes.append(f"{told}; accepted: {why}")
        elif does is OnResume.ACCEPT:
            refusals.append(f"{told}. To resume with the new value give --accept {field}: {why}")
        else:
            refusals.append(f"{told}. It cannot change: {why}")
    if refusals:
        lines = "".join(f"\n  - {refusal}" for refusal in refusals)
        raise CheckpointError(
            f"{path} was trained under other values of the recipe:{lines}\nPut the values of the checkpoint back, or "
            f"choose another output_dir to start anew (with model.init: {path} from these weights)"
        )
    return tuple(f"changed since the checkpoint: {change}" for change in changes)


def _rule(field: str) -> tuple[OnResume, str]:
    if field == "stages":
        return OnResume.REFUSED, "the stages are in another order"
    rule = resume_rule(field)
    return rule.does, rule.why


def _value(resolved: Any, field: str) -> str:
    """The value of a dotted field as `difference` names it."""
    value = resolved
    for key in field.split("."):
        if isinstance(value, list):
            value = next((entry for entry in value if entry_name(entry) == key), None)
        else:
            value = value.get(key) if isinstance(value, dict) else None
    if field == "stages":
        value = [entry_name(stage) for stage in resolved["stages"]]
    return "none" if value is None else str(value)
