"""Shows that forward-only losses are those of training's own pass, sample by sample the same on every layout, and that
training goes on as if nothing had been measured.

Tolerance: fp32 sums in another order move a loss by about 1e-7 of itself; 1e-5 is what the probe promises.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sts.config import Recipe
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import full_plan
from megatron_sts.train.evaluation_step import EvaluationStep, SampleLosses
from megatron_sts.train.held_out import HeldOutSamples
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import Start
from megatron_sts.train.stage_data import StageData
from tests.parallel.observe import step_inputs
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

# Seven are no multiple of anything; the last is text alone. Number 3 has an image that cannot be read.
SAMPLES = [2, 0, 3, 9, 7, 4, 11]
LAYOUTS = {
    "dp2": (
        2,
        {"optimizer": {"distributed": True}, "parallel": {"overlap_grad_reduce": True, "overlap_param_gather": True}},
    ),
    "tp2_sp": (2, {"parallel": {"tensor": 2, "sequence_parallel": True}}),
    "pp2_vp2": (2, {"parallel": {"pipeline": 2, "virtual_pipeline": 2}}),
    "cp2_pp2": (4, {"parallel": {"context": 2, "pipeline": 2}}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluation")
    tiny_recipe(root)
    (root / "images" / "3.png").write_text("not a picture")
    return root


def _measured(recipe: Recipe, measures: bool) -> dict[str, Any]:
    """Losses of the samples under two plans, between two training steps; and those steps' losses."""
    place, stage = start_groups(recipe.parallel, recipe.seed), recipe.stage("tune")
    data = StageData(recipe, stage)
    parts = prepare_stage(recipe, stage, data.total_steps, Start(None, 0), place)
    found: dict[str, Any] = {"training": []}
    full = full_plan(recipe.architecture.visual_tokens)
    for given in step_inputs(data, place, 2):
        plan, done = given.plan, parts.step.run(given)
        found["training"].append((done.loss, done.grad_norm))
        if measures and plan.step == 0:
            evaluation = EvaluationStep(recipe, parts.chunks, parts.step.modules, place)
            samples = HeldOutSamples(recipe, data, place, SAMPLES, micro=2)
            sparse = replace(data.planner.plan(1), skipped_layers=frozenset({1, 2}))
            visual = replace(sparse, layers_skipped_for_visual=frozenset({0, 3}))
            for name, measured in {"full": full, "sparse": sparse, "visual": visual}.items():
                found[name] = evaluation.losses(measured, samples)
            step_samples = HeldOutSamples(recipe, data, place, data.sampler.samples_of_step(1), micro=2)
            found["step"] = evaluation.losses(data.planner.plan(1), step_samples).mean
    return found


def _recipe(root: Path, **changes: Any) -> Recipe:
    sparsity = {"tune__compress": {"strategy": "random"}, "tune__skip": {"alpha": 0.5, "selection": "independent"}}
    return tiny_recipe(root, tune__data={"max_bad_records": 1}, **sparsity, **changes)


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, Any]:
    return run_ranks(1, _measured, _recipe(root), True)[0]


def test_it_is_the_loss_that_training_has(alone):
    assert alone["step"] == pytest.approx(alone["training"][1][0], rel=1e-6)
    full, sparse = alone["full"], alone["sparse"]
    assert (full.tokens > 0).tolist() == [number != 3 for number in SAMPLES]
    assert np.abs(full.losses - sparse.losses)[full.tokens > 0].min() > 1e-4
    # Number 11 has no image, whose tokens could be left out.
    differs = np.abs(sparse.losses - alone["visual"].losses) > 1e-4
    assert differs.tolist() == [number not in (3, 11) for number in SAMPLES]


def test_training_goes_on_as_if_nothing_had_been_measured(root, alone):
    assert run_ranks(1, _measured, _recipe(root), False)[0]["training"] == alone["training"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_equal_on_every_layout(root, alone, layout):
    ranks, changes = LAYOUTS[layout]
    for found in run_ranks(ranks, _measured, _recipe(root, **changes), True):
        for plan in ("full", "sparse", "visual"):
            np.testing.assert_array_equal(found[plan].tokens, alone[plan].tokens)
            np.testing.assert_allclose(found[plan].losses, alone[plan].losses, rtol=1e-5)
        np.testing.assert_allclose(found["training"], alone["training"], rtol=2e-5)


def test_a_rise_has_the_standard_error_of_paired_differences():
    tokens = np.array([1.0, 3.0, 0.0])
    base, found = SampleLosses(np.array([2.0, 6.0, 0.0]), tokens), SampleLosses(np.array([3.0, 6.0, 0.0]), tokens)
    # Differences 1 and 0 over 1 and 3 tokens: a rise of 1/4, residuals 3/4 and -3/4, variance 2 (9/16 + 9/16) / 16.
    rise = found.rise_over(base)
    assert (base.mean, rise.mean) == (2.0, 0.25)
    assert rise.standard_error == pytest.approx((2 * 18 / 16 / 16) ** 0.5)
