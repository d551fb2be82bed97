"""Shows that inputs made aside are those made in turn, that errors arrive at their step, and that the thread ends."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_sts.config import SkipConfig
from megatron_sts.data import IGNORED_LABEL
from megatron_sts.errors import DataError
from megatron_sts.parallel.device import prepare_device
from megatron_sts.parallel.groups import Place
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.step_input import StepInput
from tests.tiny import tiny_recipe

ALONE = Place(0, 1, 0, 1, 0, 1, 0, 1, 0, 1)
BAD = "r7"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> StageData:
    """Six steps over 24 records, the picture of one of which is cut short."""
    prepare_device()
    recipe = tiny_recipe(tmp_path_factory.mktemp("ahead"), tune__steps=6, tune__data={"max_bad_records": 1})
    found = StageData(recipe, recipe.stage("tune"))
    picture = Path(recipe.stages[0].data.images) / "7.png"
    picture.write_bytes(picture.read_bytes()[:200])
    return found


def _step_of_bad(data: StageData) -> int:
    return next(step for step in range(6) if BAD in {data.samples[n].id for n in data.sampler.samples_of_step(step)})


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("inputs ahead")]


def test_inputs_made_aside_are_those_made_in_turn(data: StageData) -> None:
    with data.inputs(ALONE, 0, aside=True) as aside:
        found = []
        for given in aside:
            found.append(given)
            assert _threads()
    for one, other in zip(found, data.inputs(ALONE, 0, aside=False), strict=True):
        assert one.plan == other.plan and one.length == other.length
        for mine, expected in zip(one.all_batches(), other.all_batches(), strict=True):
            assert len(mine.device_tensors()) == len(expected.device_tensors())
            assert all(map(torch.equal, mine.device_tensors(), expected.device_tensors()))
    assert len(found) == 6 and not _threads()


@pytest.mark.parametrize("aside", [True, False])
def test_a_bad_sample_is_known_a_step_ahead_and_blank_in_its_own(data: StageData, aside: bool) -> None:
    bad_step = _step_of_bad(data)
    with data.inputs(ALONE, 0, aside) as ahead:
        for step in range(bad_step + 1):
            # What other ranks have found counts as much as one's own.
            assert ahead.bad_ahead() == (step == bad_step)
            ahead.told(step == bad_step)
            batches = list(next(ahead).all_batches())
    place = data.sampler.samples_of_step(bad_step).index(7)
    labels = batches[place // data.micro].labels[place % data.micro]
    assert bool((labels == IGNORED_LABEL).all())
    assert ahead.take_wait() > 0.0 == ahead.take_wait()


@pytest.mark.parametrize("aside", [True, False])
def test_an_error_is_raised_at_the_step_that_met_it(
    data: StageData, aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = StageData.input_of, []

    def third_fails(*arguments: Any) -> StepInput:
        calls.append(arguments)
        if len(calls) == 3:
            raise DataError("the third step's")
        return original(*arguments)

    monkeypatch.setattr(StageData, "input_of", third_fails)
    with data.inputs(ALONE, 3, aside) as ahead:
        next(ahead)
        next(ahead)
        assert not ahead.bad_ahead()
        with pytest.raises(DataError, match="the third step's"):
            next(ahead)
    assert len(calls) == 3 and not _threads()


def test_the_thread_ends_with_what_stops_the_loop(data: StageData) -> None:
    def stopped() -> None:
        with data.inputs(ALONE, 0, aside=True) as ahead:
            next(ahead)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not _threads()


@pytest.mark.parametrize("aside", [True, False])
def test_other_plans_hold_from_the_coming_step_on(data: StageData, aside: bool) -> None:
    skip = SkipConfig(alpha=0.5, schedule="constant")
    other = data.with_skip((skip,))
    with data.inputs(ALONE, 0, aside) as ahead:
        assert not next(ahead).plan.skipped_layers
        # Read already, by the plans that held until now.
        ahead.bad_ahead()
        ahead.take_up(other)
        assert [given.plan for given in ahead] == [other.planner.plan(step) for step in range(1, 6)]
