"""A stage that a resume makes longer by the user's word: what is done stays, and the steps to come go on from it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.config import Recipe, checkpoint_root, read_run
from megatron_sts.errors import CheckpointError
from megatron_sts.planning import step_records
from megatron_sts.sts import resume_recipe
from megatron_sts.train.stages import train
from tests.parallel.test_resume import EVERY, _metrics
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

SKIP = {"tune__skip": {"alpha": 0.8, "epsilon": 0.2, "skip_groups": 2}}
LONGER = "stages.tune.steps"
RATES = "stages.tune.learning_rate"
DECAY = "optimizer.weight_decay"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lengthened")


def _recipe(root: Path, output: Path, **changes: Any) -> Recipe:
    return tiny_recipe(root, output_dir=str(output), **{**SKIP, **EVERY, **changes})


@pytest.fixture(scope="module")
def whole(root: Path) -> Recipe:
    """A run of 3 and 4 steps, finished, with checkpoints of steps 2 and 4 of tune."""
    recipe = _recipe(root, root / "whole")
    run_ranks(1, train, recipe)
    return recipe


@pytest.fixture
def copy_of(whole: Recipe, root: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """The finished run, copied, under a recipe with changes; without the checkpoint of its end where `killed`."""

    def copied(killed: bool, **changes: Any) -> Recipe:
        output = tmp_path / "run"
        if not output.exists():
            shutil.copytree(whole.output_dir, output)
        if killed:
            shutil.rmtree(output / "checkpoints" / "tune-00000004", ignore_errors=True)
        return _recipe(root, output, **changes)

    return copied


def _tune(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["stage"] == "tune"]


def _planned(recipe: Recipe, accepted: tuple[str, ...]) -> list[list[int]]:
    records = step_records(recipe, 100, accepted=accepted)
    return [record["layers_skipped"] for record in records if record["stage"] == "tune"]


def _cosine(count: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * count / (steps + 1)))


def test_a_stage_made_longer_on_its_way_keeps_its_steps_and_goes_on(whole, copy_of):
    longer = copy_of(killed=True, tune__steps=8)
    with pytest.raises(CheckpointError, match=f"--accept {LONGER}: from the next step on the learning rate"):
        resume_recipe(longer)
    planned = _planned(longer, (LONGER,))
    assert planned[:2] == [line["layers_skipped"] for line in _tune(_metrics(whole))][:2]

    run_ranks(1, train, longer, None, [LONGER])
    before, after = _tune(_metrics(whole)), _tune(_metrics(longer))
    assert after[:2] == before[:2] and [line["step"] for line in after] == list(range(1, 9))
    # What plan.py said before is what training did; and the rate is that of 8 steps.
    assert [line["layers_skipped"] for line in after] == planned
    assert [line["learning_rate"] for line in after[2:]] == pytest.approx([1e-2 * _cosine(n, 8) for n in range(3, 9)])
    lengths = read_run(checkpoint_root(longer) / "tune-00000008").recipe.stage("tune").lengths
    assert [(length.from_step, length.steps, length.samples) for length in lengths] == [(0, 4, 24), (2, 8, 24)]

    # The word is needed once; a resume of the longer run equals it.
    shutil.rmtree(checkpoint_root(longer) / "tune-00000008")
    run_ranks(1, train, longer)
    assert _tune(_metrics(longer)) == after
    assert _planned(longer, ()) == planned


def test_a_finished_stage_goes_on_for_longer_at_other_rates(whole, copy_of):
    changes = {"tune__steps": 6, "tune__learning_rate": {"projector": 1e-3, "language": 1e-3}}
    longer = copy_of(killed=False, **changes, optimizer={"weight_decay": 0.1})
    with pytest.raises(CheckpointError) as caught:
        resume_recipe(longer)
    for key in (LONGER, f"{RATES}.projector", f"{RATES}.language", DECAY):
        assert f"give --accept {key}: " in str(caught.value)
    run_ranks(1, train, longer, None, [LONGER, RATES, DECAY])
    after = _tune(_metrics(longer))
    assert after[:4] == _tune(_metrics(whole))
    assert [line["learning_rate"] for line in after[4:]] == pytest.approx([1e-3 * _cosine(n, 6) for n in (5, 6)])
    assert not any(line["layers_skipped"] for line in after[4:]), "its fade was over"
    # The decay is new too: with that of before the last loss is another.
    losses = [line["loss"] for line in after]
    shutil.rmtree(longer.output_dir)
    run_ranks(1, train, copy_of(killed=False, **changes), None, [LONGER, RATES])
    undecayed = [line["loss"] for line in _tune(_metrics(longer))]
    assert undecayed[:5] == losses[:5] and undecayed[5] != losses[5]


def test_a_stage_is_not_made_longer_once_a_later_one_has_begun(copy_of):
    longer = copy_of(killed=False, align__steps=5)
    with pytest.raises(CheckpointError, match="Stage align is over: tune has begun from its end"):
        resume_recipe(longer, ["stages.align.steps"])
    assert json.loads((checkpoint_root(longer) / "tune-00000004" / "run.json").read_text())["step"] == 4
