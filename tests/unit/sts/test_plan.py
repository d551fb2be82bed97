"""Shows that a plan follows from recipe, stage and step alone, and skips a layer as often as it should."""

import math

import pytest

from megatron_sts.config import Recipe
from megatron_sts.sts import StagePlanner, full_plan
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
    recipe = Recipe.model_validate(
        {"output_dir": "run", "seed": seed, "model": {"architecture": ARCHITECTURE}, "stages": [stage]}
    )
    return StagePlanner(recipe, recipe.stages[0], steps, steps_per_epoch)


def plans(made: StagePlanner, steps: int = 100) -> list[frozenset[int]]:
    return [made.plan(step).skipped_layers for step in range(steps)]


SKIP = {"alpha": 0.6, "epsilon": 0.5}


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
    skipped = [sorted(plan) for plan in plans(planner({"alpha": 0.5, "epsilon": 0.5}), 8)]
    assert skipped == [[2, 3], [1, 2, 3], [0, 2], [1], [2, 3], [2, 3], [1, 3], [0, 1, 2, 3]]


def test_each_layer_is_skipped_as_often_as_its_probability():
    steps = 4000
    made = planner(SKIP, steps=steps)
    drawn = plans(made, steps)
    expected = [made.skip_probabilities(step) for step in range(steps)]
    for layer in range(LAYERS):
        mean = sum(probabilities[layer] for probabilities in expected)
        deviation = math.sqrt(sum(p[layer] * (1 - p[layer]) for p in expected))
        assert abs(sum(layer in skipped for skipped in drawn) - mean) < 5 * deviation


def test_layers_are_drawn_independently():
    steps = 4000
    drawn = plans(planner({"alpha": 0.5, "progress": "epoch"}, steps=steps, steps_per_epoch=steps), steps)
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
    assert [made.progress(step) for step in range(8)] == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]


def test_progress_by_epochs_counts_whole_epochs():
    made = planner(SKIP | {"progress": "epoch"}, steps=9, steps_per_epoch=3.0)
    assert [made.progress(step) for step in range(9)] == pytest.approx([0] * 3 + [1 / 3] * 3 + [2 / 3] * 3)


def test_progress_by_epochs_within_one_epoch_keeps_the_rate():
    made = planner(SKIP | {"progress": "epoch"}, steps=5, steps_per_epoch=5.0)
    assert [made.progress(step) for step in range(5)] == [0.0] * 5
    part = planner(SKIP | {"progress": "epoch"}, steps=5, steps_per_epoch=50.0)
    assert [part.progress(step) for step in range(5)] == [0.0] * 5


def test_progress_by_epochs_of_a_fractional_number_of_steps():
    # 2.5 steps an epoch, two epochs: the first epoch ends within step 2, step 3 is the first after it.
    made = planner(SKIP | {"progress": "epoch"}, steps=5, steps_per_epoch=2.5)
    assert [made.progress(step) for step in range(5)] == [0, 0, 0, 0.5, 0.5]


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
