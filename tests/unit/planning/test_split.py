"""Shows that the proposed split is the best there is under 1F1B, near it when interleaved, and one that can be used."""

from itertools import combinations, pairwise

import pytest

from megatron_sts.config import check_recipe
from megatron_sts.planning.costs import MicroBatchCosts, PassCost
from megatron_sts.planning.split import StageLoad, best_split
from megatron_sts.sts import PipelineSchedule, resolve_skip_groups


def compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    """All ways to cut `total` layers into `parts` stages of at least one."""
    cuts = combinations(range(1, total), parts - 1)
    return [tuple(end - start for start, end in pairwise((0, *inner, total))) for inner in cuts]


def load(first: float, last: float, pipeline: int, virtual: int, steps: int = 1) -> StageLoad:
    """Layers that cost 1 + 2; tower and logits as many layers as given."""
    costs = MicroBatchCosts(PassCost(1, 2), PassCost(0, 0), PassCost(first * 3, 0), PassCost(last, last * 2))
    return StageLoad(steps, PipelineSchedule(pipeline, virtual, 2 * pipeline), costs)


def sized(make, layers: int, pipeline: int, virtual: int = 1, **changes):
    even = {"pipeline": pipeline, "virtual_pipeline": virtual}
    return make(parallel=even, model__architecture__language__layers=layers, tune__skip=None, **changes)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (2.5, 0), (0, 1.2), (1.3, 2.1), (6, 0.5)])
@pytest.mark.parametrize(("layers", "pipeline"), [(8, 2), (12, 4), (12, 3)])
def test_no_split_is_faster_under_1f1b(make, layers, pipeline, first, last):
    recipe, loaded = sized(make, layers, pipeline), load(first, last, pipeline, 1)
    found = loaded.time(best_split(recipe, None, [loaded]))
    best = min(loaded.time(split) for split in compositions(layers, pipeline))
    # A gain below 0.1% is left.
    assert best <= found <= best * 1.001


@pytest.mark.parametrize(("first", "last"), [(0, 0), (2.5, 0), (0, 1.2), (1.3, 2.1)])
def test_interleaved_splits_come_near_the_best(make, first, last):
    recipe, loaded = sized(make, 16, 2, 2), load(first, last, 2, 2)
    found, even = loaded.time(best_split(recipe, None, [loaded])), loaded.time((4, 4, 4, 4))
    best = min(loaded.time(split) for split in compositions(16, 4))
    assert found <= even
    assert best <= found <= best * 1.03


def test_stages_of_training_weigh_by_their_steps(make):
    recipe = sized(make, 16, 4)
    heavy, plain = load(4, 0, 4, 1, steps=1), load(0, 0, 4, 1, steps=1)
    assert best_split(recipe, None, [plain]) == (4, 4, 4, 4)
    assert best_split(recipe, None, [heavy])[0] == 1
    mostly_plain = [load(4, 0, 4, 1, steps=1), load(0, 0, 4, 1, steps=50)]
    assert best_split(recipe, None, mostly_plain) == (4, 4, 4, 4)


@pytest.mark.parametrize("alpha", [0.5, 0.9])
@pytest.mark.parametrize(("pipeline", "virtual"), [(4, 1), (2, 2)])
def test_groups_left_open_stay_in_order_on_the_proposed_split(make, alpha, pipeline, virtual):
    recipe = make(
        parallel={"pipeline": pipeline, "virtual_pipeline": virtual},
        model__architecture__language__layers=16,
        tune__skip={"alpha": alpha, "epsilon": 0.1},
    )
    split = best_split(recipe, None, [load(2.0, 1.0, pipeline, virtual)])
    parallel = recipe.parallel.model_copy(update={"layers_per_stage": split})
    proposed = recipe.model_copy(update={"parallel": parallel})
    check_recipe(proposed, check_files=False)
    assert resolve_skip_groups(proposed).stages[1].skip[0].skip_groups == split
    if alpha == 0.9:
        # Every group skips up to 3.6 layers, so none may have fewer.
        assert min(split) >= 4
    else:
        assert split != (4, 4, 4, 4)


def test_layers_move_with_the_groups_that_the_recipe_names(make):
    named = {"parallel": {"pipeline": 4}, "model__architecture__language__layers": 24}
    loaded = load(4.0, 0.0, 4, 1)
    pairs = best_split(make(tune__skip={"alpha": 0.5, "skip_groups": 12}, **named), None, [loaded])
    assert pairs[0] < 6 and all(count % 2 == 0 for count in pairs)
    assert loaded.time(pairs) == min(loaded.time([2 * n for n in split]) for split in compositions(12, 4))
    uneven = {"alpha": 0.5, "skip_groups": (3, 3, 6, 6, 6)}
    assert best_split(make(tune__skip=uneven, **named), None, [loaded]) == (6, 6, 6, 6)


def test_a_run_that_goes_on_keeps_its_groups(make):
    named = {"parallel": {"pipeline": 4}, "model__architecture__language__layers": 24, "tune__skip": {"alpha": 0.5}}
    recipe, loaded = make(**named), load(4.0, 0.0, 4, 1)
    assert best_split(recipe, None, [loaded])[0] < 6
    assert best_split(recipe, resolve_skip_groups(recipe), [loaded]) == (6, 6, 6, 6)
