"""Shows what a resume under another recipe is told, key by key, and what `--accept` makes of it."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from megatron_sts.config import OnResume, Recipe, Run, check_accepted, check_resumable, resume_rule
from megatron_sts.errors import CheckpointError, ConfigError
from tests.unit.config.test_resume_table import SCHEMA

OLD = Path("runs/small/checkpoints/tune-00000010")


def run_of(recipe: Recipe, stage: str = "tune") -> Run:
    return Run(stage, 10, recipe, {})


# Every optional block is there, so that each of its keys can differ.
BLOCKS = (
    "loss_spike={}",
    "stop_after={hours: 1}",
    "model.architecture.language.rotary_scaling={kind: linear, factor: 2}",
    "stages.tune.compress={schedule: {start: 1.0, end: 0.5}}",
)


def changed(recipe: Recipe, field: str) -> Recipe:
    """What looks like the recipe with another value of one key, valid or not: only what differs is looked at."""
    values = copy.deepcopy(recipe.resolved())
    target: Any = values
    *blocks, key = field.split(".")
    for block in blocks:
        target = {entry["name"]: entry for entry in target}[block] if isinstance(target, list) else target[block]
    value = target[key]
    if isinstance(value, int | float):
        target[key] = not value if isinstance(value, bool) else value + 1
    else:
        target[key] = "another"
    return mock.Mock(spec=Recipe, resolved=lambda: values)


@pytest.mark.parametrize("key", SCHEMA)
def test_every_key_is_told_with_both_values_or_refused_with_what_to_do(load: Callable[..., Recipe], key: str) -> None:
    if key == "stages.NAME.name":
        pytest.skip("another name is another stage")
    recipe = load(*BLOCKS)
    # A list of blocks differs as a whole.
    field = re.sub(r"(lengths|earlier_groups|rises)\..*", r"\1", key.replace("stages.NAME", "stages.tune"))
    other = changed(recipe, field)
    does = resume_rule(field).does
    if does <= OnResume.KEPT:
        notes = check_resumable(OLD, run_of(recipe), other)
        assert [note.split(": ")[1] for note in notes] == ([field] if does is OnResume.ALLOWED else [])
        return
    with pytest.raises(CheckpointError, match=re.escape(field)) as caught:
        check_resumable(OLD, run_of(recipe), other)
    assert str(OLD) in str(caught.value) and " in the checkpoint, " in str(caught.value)
    assert (f"give --accept {field}: " in str(caught.value)) == (does is OnResume.ACCEPT)
    if does is OnResume.ACCEPT:
        check_accepted(recipe, [field])
        (note,) = check_resumable(OLD, run_of(recipe), other, [field])
        assert f"; accepted: {resume_rule(field).why}" in note
    else:
        with pytest.raises(ConfigError, match="no run can go on under another value"):
            check_accepted(recipe, [field])
        with pytest.raises(CheckpointError):
            check_resumable(OLD, run_of(recipe), other, [field])


def test_all_that_differs_is_listed_at_once(load: Callable[..., Recipe]) -> None:
    other = load("seed=3", "stages.tune.steps=40", "optimizer.weight_decay=0.1", "parallel.pipeline=2")
    with pytest.raises(CheckpointError) as caught:
        check_resumable(OLD, run_of(load()), other, ["optimizer.weight_decay"])
    assert str(caught.value).splitlines()[1:-1] == [
        "  - seed: 1234 in the checkpoint, 3 in the recipe. It cannot change: it seeds the order of the data and every "
        "draw",
        "  - stages.tune.steps: 20 in the checkpoint, 40 in the recipe. To resume with the new value give --accept "
        f"stages.tune.steps: {resume_rule('stages.tune.steps').why}",
    ]


def test_a_block_stands_for_its_keys_and_one_key_of_a_length_for_both(load: Callable[..., Recipe]) -> None:
    rates = load("stages.tune.learning_rate.language=1e-5", "stages.tune.learning_rate.projector=1e-5")
    assert len(check_resumable(OLD, run_of(load()), rates, ["stages.tune.learning_rate"])) == 2
    # Steps in place of epochs: both keys differ.
    align = OLD.with_name("align-00000003")
    longer = load("stages.align.steps=9")
    assert len(check_resumable(align, run_of(load(), "align"), longer, ["stages.align.steps"])) == 2
    with pytest.raises(CheckpointError, match=r"--accept stages\.align\.epochs"):
        check_resumable(align, run_of(load(), "align"), longer, ["stages.tune.steps"])


def test_keys_of_other_stages_may_change(load: Callable[..., Recipe]) -> None:
    notes = check_resumable(OLD, run_of(load()), load("stages.align.batch.global=32", "stages.align.compress=null"))
    assert [note.split(":")[1].strip() for note in notes] == ["stages.align.batch.global", "stages.align.compress"]


def test_nothing_of_a_stage_changes_that_a_later_one_began_from(load: Callable[..., Recipe]) -> None:
    align, run = OLD.with_name("align-00000003"), run_of(load(), "align")
    for override in ("stages.align.steps=9", "stages.align.learning_rate.projector=1e-4", "stages.align.compress=null"):
        with pytest.raises(CheckpointError, match="Stage align is over: tune has begun from its end"):
            check_resumable(align, run, load(override), ["stages.align.steps"], begun_later="tune")
    # What is not its own concerns the later one alone.
    assert len(check_resumable(align, run, load("seed=3", "optimizer.weight_decay=0.1"), (), begun_later="tune")) == 2


def test_of_two_skips_the_one_that_differs_is_named(load: Callable[..., Recipe]) -> None:
    both = "stages.tune.skip=[{alpha: 0.5}, {tokens: visual, alpha: 0.5}]"
    other = load(both, "stages.tune.skip.visual.alpha=0.2")
    with pytest.raises(CheckpointError, match=r"- stages\.tune\.skip\.visual\.alpha: 0\.5 in .* 0\.2 in"):
        check_resumable(OLD, run_of(load(both)), other)


def test_stages_in_another_order_are_refused(load: Callable[..., Recipe]) -> None:
    recipe = load()
    turned = recipe.model_copy(update={"stages": recipe.stages[::-1]})
    with pytest.raises(CheckpointError, match=r"stages: \['align', 'tune'\] in .*another order"):
        check_resumable(OLD, run_of(recipe), turned)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("stages.tune.step", "did you mean 'stages.NAME.steps'"),
        ("stages.tun.steps", "no stage 'tun'"),
        ("steps", "no such key"),
        ("stages", "no run can go on"),
    ],
)
def test_a_word_for_no_key_is_refused(load: Callable[..., Recipe], key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_accepted(load(), [key])
