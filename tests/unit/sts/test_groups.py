"""Shows which groups a run resolves, what it keeps of an earlier one, and what is refused with the remedy."""

import pytest

from megatron_sts.config import EarlierGroups, Recipe
from megatron_sts.errors import ConfigError
from megatron_sts.sts import StagePlanner, group_sizes, resolve_skip_groups
from tests.tiny import ARCHITECTURE


def recipe(skip: dict | None, parallel: dict | None = None, layers: int = 8) -> Recipe:
    stage = {
        "name": "tune",
        "data": {"train": "data.json"},
        "trains": ["projector"],
        "steps": 10,
        "batch": {"global": 8, "micro": 2},
        "learning_rate": {"projector": 1e-3},
        "skip": skip,
    }
    architecture = ARCHITECTURE | {"language": ARCHITECTURE["language"] | {"layers": layers}}
    return Recipe.model_validate(
        {
            "output_dir": "run",
            "parallel": parallel or {},
            "model": {"architecture": architecture},
            "stages": [stage | {"name": "align", "skip": None}, stage],
        }
    )


def resolved(*arguments, earlier: Recipe | None = None, **settings) -> tuple[int, ...]:
    found = resolve_skip_groups(recipe(*arguments, **settings), earlier)
    assert not found.stages[0].skip
    return found.stages[1].skip[0].skip_groups


HALF = {"alpha": 0.5}


def test_open_groups_are_the_virtual_stages_of_the_layout():
    assert resolved(HALF) == (8,)
    assert resolved(HALF, {"pipeline": 2}) == (4, 4)
    assert resolved(HALF, {"pipeline": 2, "virtual_pipeline": 2}) == (2, 2, 2, 2)
    assert resolved(HALF, {"pipeline": 2, "layers_per_stage": [3, 5]}) == (3, 5)


def test_groups_are_a_number_or_sizes():
    assert resolved(HALF | {"skip_groups": 4}, {"pipeline": 2}) == (2, 2, 2, 2)
    assert resolved(HALF | {"skip_groups": [2, 2, 4]}, {"pipeline": 2}) == (2, 2, 4)


def test_groups_of_the_earlier_run_are_kept_where_the_recipe_leaves_them_open():
    earlier = resolve_skip_groups(recipe(HALF, {"pipeline": 4}))
    assert resolved(HALF, {"pipeline": 2}, earlier=earlier) == (2, 2, 2, 2)
    assert resolved(HALF | {"skip_groups": 2}, {"pipeline": 2}, earlier=earlier) == (4, 4)
    # Another depth is another run.
    assert resolved(HALF, layers=4, earlier=earlier) == (4,)


def test_resolved_groups_stay_as_they_are():
    once = resolve_skip_groups(recipe(HALF, {"pipeline": 2}))
    assert resolve_skip_groups(once) == once
    assert group_sizes(once, once.stages[1].skip[0]) == (4, 4)


def test_a_layout_that_cannot_honour_the_groups_of_the_earlier_run_is_refused():
    earlier = resolve_skip_groups(recipe(HALF, {"pipeline": 2}))
    with pytest.raises(ConfigError) as caught:
        resolved(HALF, {"pipeline": 4}, earlier=earlier)
    assert "stages.tune.skip.skip_groups [4, 4], those that the run in output_dir was begun with," in str(caught.value)
    assert "has the layers 0 to 3 in one group" in str(caught.value)
    assert "give --accept stages.tune.skip.skip_groups" in str(caught.value)


def test_groups_change_by_the_user_s_word_and_those_of_the_steps_done_are_kept():
    earlier = resolve_skip_groups(recipe(HALF, {"pipeline": 2}))

    def regrouped(skip: dict, parallel: dict, step: int = 30) -> Recipe:
        return resolve_skip_groups(recipe(skip, parallel), earlier, regrouped={"stages.tune.skip": step})

    moved = regrouped(HALF, {"pipeline": 4})
    assert moved.stages[1].skip[0].skip_groups == (2, 2, 2, 2)
    assert moved.stages[1].skip[0].earlier_groups == (EarlierGroups(before_step=30, sizes=(4, 4)),)
    # Where the layout can have the old ones they stay; and what the recipe names holds.
    assert regrouped(HALF, {}).stages[1].skip == earlier.stages[1].skip
    named = regrouped(HALF | {"skip_groups": 8}, {}).stages[1].skip[0]
    assert named.skip_groups == (1,) * 8 and named.earlier_groups[0].sizes == (4, 4)
    # A resume of the regrouped run.
    assert resolve_skip_groups(recipe(HALF, {"pipeline": 4}), moved) == moved


def test_a_regrouped_plan_keeps_its_steps_and_is_balanced_after():
    old = resolve_skip_groups(recipe(HALF, {"pipeline": 2}))
    new = resolve_skip_groups(recipe(HALF, {"pipeline": 4}), old, regrouped={"stages.tune.skip": 40})
    before, after = (StagePlanner(one, one.stages[1], 100, 100.0) for one in (old, new))
    assert [after.plan(step) for step in range(40)] == [before.plan(step) for step in range(40)]
    assert any(after.plan(step).skipped_layers for step in range(40, 100))
    for step in range(40, 100):
        skipped = after.plan(step).skipped_layers
        assert len({len(skipped & {first, first + 1}) for first in (0, 2, 4, 6)}) == 1


@pytest.mark.parametrize(
    ("skip", "parallel", "parts"),
    [
        (
            HALF | {"skip_groups": [3, 5]},
            {"pipeline": 2},
            [
                "layers 3 to 7 in one group",
                "virtual pipeline stage 0 of this layout ends after layer 3",
                "choose groups",
            ],
        ),
        (HALF | {"skip_groups": [1, 7]}, {}, ["every group skip 2 layers", "group 0 has 1 that may", "lower alpha"]),
        (
            HALF | {"skip_groups": 2, "never_skip": [0, 1, 2]},
            {},
            ["every group skip 1.25 layers", "group 0 has 1", "never_skip [0, 1, 2] left out", "take layers off"],
        ),
        (HALF | {"skip_groups": 4, "never_skip": [0, 1]}, {}, ["group 0 has 0 that may be skipped"]),
        (
            {"alpha": 0.5, "epsilon": 1.0, "skip_groups": [2, 6]},
            {},
            ["epsilon 1 with groups of [2, 6] layers", "probability", "lower epsilon or alpha"],
        ),
        (
            HALF | {"min_layers_run": 5, "skip_groups": 4},
            {},
            ["leaves 3 layers to skip, fewer than the 4", "at most 4"],
        ),
        (
            {"alpha": 1.0, "selection": "independent", "min_layers_run": 1},
            {},
            ["min_layers_run is 1 of 8, but 8 layers have the skip probability 1"],
        ),
    ],
)
def test_what_cannot_be_met_is_refused_with_what_to_change(skip, parallel, parts):
    with pytest.raises(ConfigError) as caught:
        resolved(skip, parallel)
    assert "stages.tune.skip." in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_stage_that_is_not_trained_on_this_layout_is_left_as_it_is():
    open_groups = recipe(HALF, {"pipeline": 2, "layers_per_stage": [3, 5]})
    assert resolve_skip_groups(open_groups, trained=["align"]) == open_groups
    fixed = recipe(HALF | {"skip_groups": 2}, {"pipeline": 2, "layers_per_stage": [3, 5]})
    assert resolve_skip_groups(fixed, trained=["align"]) == fixed
    with pytest.raises(ConfigError, match="in one group"):
        resolve_skip_groups(fixed, trained=["tune"])


@pytest.mark.parametrize("skip", [{"alpha": 0.0, "never_skip": [0, 1]}, {"alpha": 0.5, "never_skip": list(range(8))}])
def test_a_group_of_protected_layers_is_in_order_where_nothing_is_skipped(skip):
    found = resolve_skip_groups(recipe(skip | {"skip_groups": 4}))
    planner = StagePlanner(found, found.stages[1], 10, 10.0)
    assert [planner.plan(step).skipped_layers for step in range(10)] == [frozenset()] * 10
    assert planner.skip_probabilities(0) == (0.0,) * 8


def test_alpha_zero_fits_any_groups():
    assert resolved({"alpha": 0.0, "skip_groups": [1, 7], "never_skip": [0]}) == (1, 7)
