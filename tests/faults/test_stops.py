"""A stop that one rank is asked for: all finish the step, save the same step, and end with the documented code."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.config import Recipe, checkpoint_root
from megatron_sts.exit_codes import STOPPED
from megatron_sts.train.stages import train
from megatron_sts.train.stopping import StopReason
from tests.faults.disturbed import POINTS, kill_with, train_disturbed
from tests.parallel.test_resume import _metrics
from tests.ranks import run_ranks, run_until_ended
from tests.tiny import tiny_recipe

EVERY = {"checkpoint": {"every_steps": 2, "keep_last": 9}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stops")


@pytest.fixture(scope="module")
def whole(root: Path) -> list[dict[str, Any]]:
    recipe = tiny_recipe(root, output_dir=str(root / "whole"), **EVERY)
    run_ranks(2, train, recipe)
    return _metrics(recipe)


def _saved(recipe: Recipe) -> list[str]:
    return sorted(path.name for path in checkpoint_root(recipe).glob("*-*"))


def _stops_and_resumes(recipe: Recipe, ranks: int, point: str, number: int, whole: list[dict[str, Any]] | None) -> None:
    # The signal comes in the second step. When its loss has been summed the ranks have agreed to go on: one more step.
    ended = run_until_ended(ranks, train_disturbed, recipe, ranks - 1, point, 1, kill_with(number))
    assert [one.code for one in ended] == [STOPPED] * ranks, [one.output for one in ended]
    assert _saved(recipe)[-1] == ("align-00000003" if point in ("optimizer", "save") else "align-00000002")
    assert f"stops here: {StopReason.SIGNAL.text}" in ended[0].output
    if whole is not None:
        run_ranks(ranks, train, recipe)
        assert _metrics(recipe) == whole


@pytest.mark.fault(
    "SIGINT, SIGTERM or SIGUSR1 to one rank in forward, backward, optimizer, save: the same step saved by all"
)
@pytest.mark.parametrize(
    ("point", "number"), [("forward", signal.SIGINT), ("backward", signal.SIGUSR1), ("save", signal.SIGTERM)]
)
def test_signal_to_one_rank_stops_all_after_the_same_step(root, tmp_path, whole, point, number):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), **EVERY)
    _stops_and_resumes(recipe, 2, point, number, whole if point == "backward" else None)


@pytest.mark.fault("the same on four ranks (tensor 2 x pipeline 2)", everything=True)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("point", POINTS)
def test_signal_to_one_rank_of_four_stops_all_after_the_same_step(root, tmp_path, point, number):
    layout = {"parallel": {"tensor": 2, "pipeline": 2}}
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), **EVERY, **layout)
    _stops_and_resumes(recipe, 4, point, number, None)


@pytest.mark.fault("stop_after: saved after the step in which the time ends, resumed to the same losses")
def test_time_limit_stops_after_the_step_and_the_run_goes_on_later(root, tmp_path, whole):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), **EVERY)
    limited = tiny_recipe(root, output_dir=str(tmp_path / "run"), stop_after={"minutes": 1e-6}, **EVERY)
    for step in (1, 2):
        assert run_ranks(2, train, limited) == [StopReason.TIME] * 2
        assert _saved(recipe)[-1] == f"align-0000000{step}"
    assert run_ranks(2, train, recipe) == [StopReason.NONE] * 2
    assert _metrics(recipe) == whole


def _twice() -> None:
    kill_with(signal.SIGTERM)()
    time.sleep(0.05)
    kill_with(signal.SIGTERM)()


@pytest.mark.fault("a second signal: the process ends at once")
def test_second_signal_ends_the_process(root, tmp_path):
    recipe = tiny_recipe(root, output_dir=str(tmp_path / "run"), **EVERY)
    (ended,) = run_until_ended(1, train_disturbed, recipe, 0, "forward", 1, _twice)
    assert ended.code == -signal.SIGTERM
    assert _saved(recipe) == []
