"""Shows that a plan follows from recipe, stage and step alone, and skips a layer as often as it should."""

import hashlib
import math

import pytest

from megatron_sts.config import Recipe
from megatron_sts.sts import StagePlanner, full_plan, resolve_skip_groups
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE

LAYERS = ARCHITECTURE["language"]["layers"]


def planner(
    skip: dict | None = None,
    compress: dict | None = None,
    *,
    seed: int = 1234,
    name: str = "tune",
    steps: int = 100,
    steps_per_epoch: float = 100.0,
) -> StagePlanner:
    recipe = Recipe.model_validate(planner_values(skip, compress, seed=seed, name=name, steps=steps))
    return StagePlanner(recipe, recipe.stages[0], steps, steps_per_epoch)


def planner_values(
    skip: dict | list[dict] | None,
    compress: dict | None = None,
    *,
    seed: int = 1234,
    name: str = "tune",
    steps: int = 100,
) -> dict:
    stage = {
        "name": name,
        "data": {"train": "data.json"},
        "trains": ["projector"],
        "steps": steps,
        "batch": {"global": 8, "micro": 2},
        "learning_rate": {"projector": 1e-3},
        "skip": skip,
        "compress": compress,
    }
    return {"output_dir": "run", "seed": seed, "model": {"architecture": ARCHITECTURE}, "stages": [stage]}


def plans(made: StagePlanner, steps: int = 100) -> list[frozenset[int]]:
    return [made.plan(step).skipped_layers for step in range(steps)]


SKIP = {"alpha": 0.6, "epsilon": 0.5, "selection": "independent"}


def progress_of(made: StagePlanner, steps: int) -> list[float]:
    return [made.progress(step, made.stage.skip[0]) for step in range(steps)]


def test_equal_recipes_give_equal_plans_in_any_order():
    forward, backward = planner(SKIP), planner(SKIP)
    expected = [forward.plan(step) for step in range(50)]
    assert [backward.plan(step) for step in reversed(range(50))] == expected[::-1]


def test_seeds_stages_and_steps_draw_apart():
    base = plans(planner(SKIP))
    assert base != plans(planner(SKIP, seed=1235))
    assert base != plans(planner(SKIP, name="tune2"))
    # Steps draw apart where the probability stays the same, too.
    constant = planner(SKIP | {"progress": "epoch"})
    assert len(set(plans(constant))) > 4


def test_the_draw_is_the_one_of_earlier_releases():
    skipped = [sorted(plan) for plan in plans(planner({"alpha": 0.5, "epsilon": 0.5, "selection": "independent"}), 8)]
    assert skipped == [[2, 3], [1, 2, 3], [0, 2], [1], [2, 3], [2, 3], [1, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize(
    "skip",
    [
        SKIP,
        SKIP | {"never_skip": [3], "min_layers_run": 3},
        SKIP | {"min_layers_run": 2},
        SKIP | {"schedule": "constant", "min_layers_run": 3},
        SKIP | {"selection": "balanced", "skip_groups": 2},
        SKIP | {"selection": "balanced", "skip_groups": [1, 3], "alpha": 0.3},
        SKIP | {"selection": "balanced", "skip_groups": 2, "never_skip": [0], "epsilon": 0.1},
        SKIP | {"selection": "balanced", "skip_groups": 2, "min_layers_run": 2},
        {"alpha": 0.4, "schedule": "pld", "skip_groups": 1},
    ],
    ids=str,
)
def test_each_layer_is_skipped_as_often_as_its_probability(skip):
    steps, runs = 1000, 4
    hits, expected, variance = [0] * LAYERS, [0.0] * LAYERS, [0.0] * LAYERS
    for seed in range(runs):
        made = planner(skip, steps=steps, seed=seed)
        for step in range(steps):
            skipped = made.plan(step).skipped_layers
            assert len(skipped) <= LAYERS - skip.get("min_layers_run", 0)
            for layer, probability in enumerate(made.skip_probabilities(step)):
                assert 0.0 <= probability <= 1.0
                hits[layer] += layer in skipped
                expected[layer] += probability
                variance[layer] += probability * (1 - probability)
    for layer in range(LAYERS):
        # Systematic draws vary less than independent ones, so their bound is the wider.
        assert abs(hits[layer] - expected[layer]) <= 5 * math.sqrt(variance[layer]) + 1e-6
        assert layer not in skip.get("never_skip", ()) or hits[layer] == 0


def test_layers_are_drawn_independently():
    steps = 4000
    skip = {"alpha": 0.5, "schedule": "constant", "selection": "independent"}
    drawn = plans(planner(skip, steps=steps), steps)
    for one in range(LAYERS):
        for other in range(one):
            together = sum(one in skipped and other in skipped for skipped in drawn)
            assert abs(together - steps / 4) < 5 * math.sqrt(steps * 3 / 16)


def test_alpha_zero_and_no_skip_skip_nothing():
    for made in (planner({"alpha": 0.0, "epsilon": 1.0}), planner(None)):
        assert not any(plans(made))
        assert made.skip_probabilities(0) == (0.0,) * LAYERS


def test_progress_by_steps_reaches_the_end_after_the_last_step():
    made = planner(SKIP, steps=8)
    assert progress_of(made, 8) == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]


HASH_RECIPE = {"alpha": 0.5, "epsilon": 0.5, "selection": "balanced"}


def plan_hash(recipe: Recipe, steps: int) -> str:
    made = StagePlanner(recipe, recipe.stages[0], steps, steps)
    digest = hashlib.sha256()
    for step in range(steps):
        digest.update(f"{step}:{sorted(made.plan(step).skipped_layers)};".encode())
    return digest.hexdigest()


def deep_recipe(parallel: dict, skip: dict | list[dict]) -> Recipe:
    architecture = ARCHITECTURE | {"language": ARCHITECTURE["language"] | {"layers": 16}}
    values = planner_values(skip) | {"parallel": parallel, "model": {"architecture": architecture}}
    return Recipe.model_validate(values)


def test_plan_is_the_same_in_every_layout_whose_stages_are_made_of_its_groups():
    steps = 10_000
    layouts = [{"pipeline": pipeline} for pipeline in (1, 2, 4, 8)]
    layouts += [{"tensor": 2, "pipeline": 2, "virtual_pipeline": 4}, {"pipeline": 2, "layers_per_stage": [6, 10]}]
    found = {
        plan_hash(resolve_skip_groups(deep_recipe(parallel, HASH_RECIPE | {"skip_groups": 8})), steps)
        for parallel in layouts
    }
    assert len(found) == 1
    # Left open, the groups are the layout's own: pipelines of 8 and 2 x 4 stages agree, other depths do not.
    opened = [plan_hash(resolve_skip_groups(deep_recipe(parallel, HASH_RECIPE)), 200) for parallel in layouts[:5]]
    assert opened[3] == opened[4] == plan_hash(deep_recipe({}, HASH_RECIPE | {"skip_groups": 8}), 200)
    assert len(set(opened)) == 4


def test_every_rank_of_any_world_has_the_same_plan():
    recipe = deep_recipe({}, HASH_RECIPE | {"skip_groups": 8})
    found = {digest for world in (1, 2, 4) for digest in run_ranks(world, plan_hash, recipe, 10_000)}
    assert found == {plan_hash(recipe, 10_000)}


def test_progress_by_epochs_counts_whole_epochs():
    made = planner(SKIP | {"progress": "epoch"}, steps=9, steps_per_epoch=3.0)
    assert progress_of(made, 9) == pytest.approx([0] * 3 + [1 / 3] * 3 + [2 / 3] * 3)


def test_progress_by_epochs_within_one_epoch_keeps_the_rate():
    made = planner(SKIP | {"progress": "epoch"}, steps=5, steps_per_epoch=5.0)
    assert progress_of(made, 5) == [0.0] * 5
    part = planner(SKIP | {"progress": "epoch"}, steps=5, steps_per_epoch=50.0)
    assert progress_of(part, 5) == [0.0] * 5


def test_progress_by_epochs_of_a_fractional_number_of_steps():
    # 2.5 steps an epoch, two epochs: the first epoch ends within step 2, step 3 is the first after it.
    made = planner(SKIP | {"progress": "epoch"}, steps=5, steps_per_epoch=2.5)
    assert progress_of(made, 5) == [0, 0, 0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("compress", "kept"),
    [
        (None, tuple(range(16))),
        ({"strategy": "none"}, tuple(range(16))),
        ({}, tuple(range(0, 16, 2))),
        ({"keep_ratio": 0.25}, (0, 4, 8, 12)),
        ({"keep_tokens": 3}, (0, 5, 10)),
    ],
)
def test_kept_tokens_follow_from_the_compression(compress, kept):
    plan = planner(None, compress).plan(0)
    assert plan.kept_tokens == kept
    assert plan.visual_tokens == len(kept)
    assert plan.total_visual_tokens == 16


def test_dense_plan_runs_everything():
    dense = planner(SKIP, {"keep_ratio": 0.25}).dense_plan(7)
    assert dense == full_plan(16, 7)
    assert dense.step == 7
    assert not dense.skipped_layers
    assert dense.visual_tokens == 16


def both_kinds(alpha: float, visual_alpha: float, groups: int = 4) -> StagePlanner:
    shared = {"schedule": "constant", "skip_groups": groups}
    skips = [{"alpha": alpha} | shared, {"tokens": "visual", "alpha": visual_alpha} | shared]
    recipe = deep_recipe({}, skips)
    return StagePlanner(recipe, recipe.stages[0], 1000, 1000)


def test_layers_are_skipped_for_visual_tokens_by_draws_of_their_own():
    recipe = deep_recipe({}, {"tokens": "visual", "alpha": 0.75, "schedule": "constant", "skip_groups": 4})
    made = StagePlanner(recipe, recipe.stages[0], 1000, 1000)
    drawn = [made.plan(step) for step in range(1000)]
    assert all(not plan.skipped_layers and len(plan.layers_skipped_for_visual) == 12 for plan in drawn)
    assert made.skip_probabilities(0) == (0.0,) * 16
    assert made.skip_probabilities(0, "visual") == pytest.approx((0.75,) * 16)
    # 0.75 with a standard deviation of sqrt(0.75 * 0.25 / 1000) = 0.014.
    for layer in range(16):
        assert abs(sum(layer in plan.layers_skipped_for_visual for plan in drawn) / 1000 - 0.75) < 0.07


@pytest.mark.parametrize(("alpha", "visual_alpha"), [(0.25, 0.5), (0.25, 0.75), (0.5, 0.75)])
def test_groups_skip_the_same_number_for_either_kind_of_tokens(alpha, visual_alpha):
    made = both_kinds(alpha, visual_alpha)
    alone = both_kinds(alpha, 0.0)
    for step in range(1000):
        plan = made.plan(step)
        assert plan.skipped_layers == alone.plan(step).skipped_layers
        assert not plan.skipped_layers & plan.layers_skipped_for_visual
        assert by_group(plan.skipped_layers) == [4 * alpha] * 4
        assert by_group(plan.layers_skipped_for_visual) == [min(4 * visual_alpha, 4 - 4 * alpha)] * 4


def by_group(layers: frozenset[int]) -> list[int]:
    return [sum(layer // 4 == group for layer in layers) for group in range(4)]


def test_an_exempt_layer_takes_no_turn_of_another():
    shared = {"schedule": "constant", "skip_groups": 2}
    recipe = deep_recipe(
        {}, [{"alpha": 0.5} | shared, {"tokens": "visual", "alpha": 0.25, "never_skip": [0, 9]} | shared]
    )
    made = StagePlanner(recipe, recipe.stages[0], 500, 500)
    assert not any({0, 9} & made.plan(step).layers_skipped_for_visual for step in range(500))


@pytest.mark.parametrize("schedule", ["sts", "constant", "pld"])
@pytest.mark.parametrize("selection", ["independent", "balanced"])
def test_the_rate_rises_linearly_over_its_ramp(schedule, selection):
    skip = {"alpha": 0.4, "schedule": schedule, "selection": selection}
    plain, ramped = planner(skip), planner(skip | {"ramp_ratio": 0.2})
    for step in (0, 5, 10, 19, 20, 60, 99):
        factor = min(1.0, step / 20)
        expected = [factor * probability for probability in plain.skip_probabilities(step)]
        assert ramped.skip_probabilities(step) == pytest.approx(expected, abs=1e-12)
    assert not ramped.plan(0).skipped_layers


def test_full_steps_run_all_layers_and_keep_all_visual_tokens():
    skips = [
        {"alpha": 0.5, "schedule": "constant", "full_share": 0.1},
        {"tokens": "visual", "alpha": 0.5, "schedule": "constant", "full_share": 0.1},
    ]
    compress = {"strategy": "text_guided", "keep_ratio": 0.25, "full_share": 0.1}
    made = planner(skips, compress)
    drawn = [made.plan(step) for step in range(100)]
    full = [plan for plan in drawn if plan == full_plan(16, plan.step)]
    assert len(full) == 10 and {plan.step % 10 for plan in full} == {full[0].step % 10}
    assert all(plan.visual_tokens == 4 and plan.strategy == "text_guided" for plan in drawn if plan not in full)
    # Balanced draws: half of the layers in each of the other steps, as without full steps.
    assert sum(len(plan.skipped_layers) for plan in drawn) == pytest.approx(90 * LAYERS / 2, abs=1)
    assert made.most_visual_tokens() == 16


def test_a_full_step_has_the_plan_it_would_have_without_full_steps_as_its_teacher():
    full = {"full_share": 0.2, "distill": 1.0}
    skips = [{"alpha": 0.5, "schedule": "constant"}, {"tokens": "visual", "alpha": 0.5, "schedule": "constant"}]
    compress = {"strategy": "random", "keep_ratio": 0.25}
    plain = planner(skips, compress)
    distilling = planner([skip | full for skip in skips], compress | full)
    teachers = [distilling.teacher_plan(step) for step in range(100)]
    assert sum(teacher is not None for teacher in teachers) == 20
    for step, teacher in enumerate(teachers):
        is_full = distilling.plan(step) == full_plan(16, step)
        assert teacher == (plain.plan(step) if is_full else None)
    # Where compression alone distills, layers are skipped by the teacher as by the step.
    some = planner(skips, compress | full)
    assert {some.teacher_plan(step) is None for step in range(100)} == {True, False}
    for step in range(100):
        if teacher := some.teacher_plan(step):
            assert teacher.leaves_out == (*some.plan(step).leaves_out[:2], 12)
    # A ramp leaves nothing out at first, so that there is nothing to learn from.
    assert planner(skips[0] | full | {"ramp_ratio": 1.0, "full_share": 1.0}).teacher_plan(0) is None
