"""Shows that a stage whose length changes keeps the plan of the steps done, and that its schedules go on from there."""

from typing import Any

import pytest

from megatron_sts.config import Recipe, Run, StageLength
from megatron_sts.errors import CheckpointError
from megatron_sts.sts import StagePlanner, with_length
from megatron_sts.sts.lengths import Span, progress
from tests.unit.sts.test_plan import planner_values

BALANCED = {"alpha": 0.6, "epsilon": 0.4, "skip_groups": 2}


def length(from_step: int, steps: int, samples: int = 800) -> StageLength:
    return StageLength(from_step=from_step, steps=steps, samples=samples)


def recipe_of(skip: dict | None = None, compress: dict | None = None, **changes: Any) -> Recipe:
    values = planner_values(skip, compress, steps=changes.pop("steps", 100))
    values["stages"][0] |= changes
    return Recipe.model_validate(values)


def planner(skip: dict | None, *lengths: StageLength, compress: dict | None = None) -> StagePlanner:
    recipe = recipe_of(skip, compress)
    stage = recipe.stages[0].model_copy(update={"lengths": lengths})
    return StagePlanner(recipe, stage, lengths[-1].steps, lengths[-1].samples / 8)


def test_progress_by_steps_goes_on_from_where_it_stood_to_the_new_end():
    lengths = (Span(0, 4, 100.0), Span(2, 10, 100.0))
    # Half is done at step 2; the eight steps that are left take the other half.
    assert [progress(lengths, step) for step in range(5)] == [0, 0.25, 0.5, 0.5625, 0.625]
    assert progress(lengths, 10) == 1.0
    # Lengthened once more: at step 6 three quarters were done.
    again = (*lengths, Span(6, 26, 100.0))
    assert [progress(again, step) for step in (5, 6, 16, 26)] == [0.6875, 0.75, 0.875, 1.0]
    # And shortened.
    assert [progress((Span(0, 10, 1.0), Span(2, 6, 1.0)), step) for step in (2, 4, 6)] == pytest.approx([0.2, 0.6, 1.0])


def test_progress_of_a_stage_lengthened_at_its_end_stays_at_one():
    lengths = (Span(0, 4, 4.0), Span(4, 8, 4.0))
    assert [progress(lengths, step) for step in range(3, 8)] == [0.75, 1, 1, 1, 1]
    assert [progress(lengths, step, by_epochs=True) for step in (3, 4, 7)] == [0, 1, 1]


def test_progress_by_epochs_goes_on_by_whole_epochs():
    # Two epochs of 4 steps, made four after the first: of the half that is left each epoch takes a third.
    lengths = (Span(0, 8, 4.0), Span(4, 16, 4.0))
    found = [progress(lengths, step, by_epochs=True) for step in (0, 3, 4, 7, 8, 12)]
    assert found == pytest.approx([0, 0, 0.5, 0.5, 0.5 + 0.5 / 3, 0.5 + 1 / 3])


@pytest.mark.parametrize(
    "skip",
    [
        BALANCED,
        BALANCED | {"progress": "epoch"},
        BALANCED | {"ramp_ratio": 0.5, "full_share": 0.2},
        BALANCED | {"min_layers_run": 2, "never_skip": [0], "alpha": 0.3},
        BALANCED | {"selection": "independent", "skip_groups": None},
        {"alpha": 0.4, "schedule": "pld", "skip_groups": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("done", [1, 37, 60])
def test_plans_of_the_steps_done_stay_and_the_count_goes_on(skip, done):
    before, after = planner(skip, length(0, 60)), planner(skip, length(0, 60), length(done, 200))
    assert [after.plan(step) for step in range(done)] == [before.plan(step) for step in range(done)]
    if skip.get("selection") == "independent":
        return
    counted, expected = 0, 0.0
    for step in range(200):
        counted += len(after.plan(step).skipped_layers)
        expected += sum(after.skip_probabilities(step))
        # By group the count is within 1 of its expectation, also across the step at which the length changed.
        assert abs(counted - expected) < skip["skip_groups"] + 1e-6


def test_a_finished_stage_that_is_lengthened_runs_all_its_layers():
    after = planner(BALANCED, length(0, 60), length(60, 100))
    assert any(after.plan(step).skipped_layers for step in range(60))
    assert not any(after.plan(step).skipped_layers for step in range(60, 100))


@pytest.mark.parametrize(
    ("schedule", "kept"),
    [
        ({"kind": "linear", "start": 1.0, "end": 0.5}, [16, 14, 12, 10, 8]),
        ({"kind": "steps", "values": [1.0, 0.5]}, [16, 16, 8, 8, 8]),
    ],
)
def test_kept_tokens_go_on_too(schedule, kept):
    # Made ten steps of four after two; and from the old end on they stay at the end.
    after = planner(None, length(0, 4), length(2, 10), compress={"schedule": schedule})
    assert [after.visual_tokens(step) for step in (0, 1, 2, 6)] == kept[:4]
    ended = planner(None, length(0, 4), length(4, 8), compress={"schedule": schedule})
    assert [ended.visual_tokens(step) for step in (4, 7)] == kept[4:] * 2


def run_of(recipe: Recipe, step: int) -> Run:
    return Run("tune", step, recipe, {})


def test_the_first_length_is_written_down_and_kept_by_a_resume():
    stage = recipe_of(steps=None, epochs=2).stages[0]
    begun = with_length(stage, 800)
    assert begun.lengths == (length(0, 200),)
    run = run_of(recipe_of().model_copy(update={"stages": (begun,)}), 20)
    assert with_length(stage, 800, run).lengths == begun.lengths


def test_a_new_length_holds_from_the_step_that_is_resumed():
    begun = with_length(recipe_of(steps=100).stages[0], 800)
    old = recipe_of().model_copy(update={"stages": (begun,)})
    longer = recipe_of(steps=150).stages[0]
    once = with_length(longer, 800, run_of(old, 20))
    assert once.lengths == (length(0, 100), length(20, 150))
    # Killed before the next checkpoint and given another length.
    assert with_length(recipe_of(steps=170).stages[0], 800, run_of(old, 20)).lengths == (
        length(0, 100),
        length(20, 170),
    )
    extended = run_of(old.model_copy(update={"stages": (once,)}), 20)
    assert with_length(recipe_of(steps=170).stages[0], 800, extended).lengths == (length(0, 100), length(20, 170))
    # A checkpoint of before lengths were written.
    assert with_length(longer, 800, run_of(recipe_of(steps=100), 20)).lengths == once.lengths


def test_other_samples_are_refused_unless_accepted():
    begun = with_length(recipe_of(steps=None, epochs=1).stages[0], 800)
    run = run_of(recipe_of().model_copy(update={"stages": (begun,)}), 20)
    stage = recipe_of(steps=None, epochs=1).stages[0]
    with pytest.raises(
        CheckpointError, match=r"found 1,600 samples to train on .* begun with 800; .*--accept stages.tune.data.train"
    ):
        with_length(stage, 1600, run)
    found = with_length(stage, 1600, run, ["stages.tune.data.train"])
    assert found.lengths == (length(0, 100), length(20, 200, 1600))
    with pytest.raises(CheckpointError, match=r"stages\.tune has 10 steps, but 20 are done"):
        with_length(stage, 80, run, ["stages.tune.data.train"])
