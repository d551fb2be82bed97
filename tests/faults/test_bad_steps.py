"""A step that is not to be trusted, on one rank in one micro-batch, changes nothing on any rank."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from megatron_sts.config import Recipe
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import StepPlan
from megatron_sts.train import stages
from megatron_sts.train import step as step_module
from megatron_sts.train.bad_steps import BAD_STEPS_FILE
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.resume import Start
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.step_input import StepInput
from tests.parallel.observe import step_inputs
from tests.parallel.test_resume import _metrics
from tests.ranks import RankFailed, run_ranks
from tests.tiny import tiny_recipe


def _state(parts: Any) -> list[torch.Tensor]:
    """Weights, the optimiser's own weights, and moments, as they are."""
    tensors = [value for chunk in parts.chunks for value in chunk.parameters()]
    for optimizer in parts.optimizer.inner.chained_optimizers:
        inner = optimizer.optimizer
        tensors += [value for group in inner.param_groups for value in group["params"]]
        tensors += [value for state in inner.state.values() for value in state.values() if torch.is_tensor(value)]
    return [value.detach().clone() for value in tensors]


def _spoiled(given: StepInput, factor: float) -> StepInput:
    """The second micro-batch's pictures times a factor."""
    assert given.batches is not None
    batches = list(given.batches)
    assert batches[1].pixels is not None
    batches[1] = replace(batches[1], pixels=batches[1].pixels * factor)
    return replace(given, batches=batches)


def _three_steps_the_last_spoiled(recipe: Recipe, factor: float) -> tuple[Any, bool]:
    place = start_groups(recipe.parallel, recipe.seed)
    stage = recipe.stage("tune")
    data = StageData(recipe, stage)
    parts = prepare_stage(recipe, stage, data.total_steps, Start(None, 0), place)
    for step, given in enumerate(step_inputs(data, place, 3)):
        if step == 2 and place.first_stage and place.data_rank == place.data_size - 1:
            given = _spoiled(given, factor)
        before = _state(parts)
        result = parts.step.run(given)
        unchanged = all(torch.equal(one, two) for one, two in zip(before, _state(parts), strict=True))
        assert unchanged == result.dropped
    return result.judgement, unchanged


@pytest.mark.fault("NaN in one micro-batch on one rank (DP2, PP2, TP2; fp32, bf16): dropped, state unchanged")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"distributed": True}, "precision": "bf16"},
        {"parallel": {"pipeline": 2}, "precision": "bf16"},
        {"parallel": {"tensor": 2}},
    ],
    ids=["dp2", "dp2_distributed_bf16", "pp2_bf16", "tp2"],
)
def test_step_with_a_nan_on_one_rank_is_dropped_by_all(tmp_path, changes):
    recipe = tiny_recipe(tmp_path, **changes)
    for judgement, unchanged in run_ranks(2, _three_steps_the_last_spoiled, recipe, float("nan")):
        assert judgement.problem.startswith("loss nan is not finite (gradient norm ") and unchanged


def _three_steps_the_last_steep(recipe: Recipe) -> tuple[Any, bool]:
    """The gradient of one micro-batch on rank 1, in the third step, is a thousand times its own."""
    calls = []
    original = step_module._loss

    def steep(*arguments: Any) -> Any:
        loss, tokens, figures = original(*arguments)
        calls.append(loss)
        # Two micro-batches a step.
        return loss * (1e3 if len(calls) == 5 and dist.get_rank() == 1 else 1), tokens, figures

    with mock.patch.object(step_module, "_loss", steep):
        return _three_steps_the_last_spoiled(recipe, 1.0)


@pytest.mark.fault("a gradient 10 deviations above the others on one rank: dropped, or warned of")
@pytest.mark.parametrize("action", ["drop", "warn"])
def test_gradient_far_above_the_earlier_ones_is_a_spike(tmp_path, action):
    recipe = tiny_recipe(tmp_path, loss_spike={"sigma": 10, "window": 2, "action": action})
    for judgement, unchanged in run_ranks(2, _three_steps_the_last_steep, recipe):
        assert (
            judgement.problem.startswith("gradient norm ")
            and "is a spike: more than 10 deviations" in judgement.problem
        )
        assert unchanged == (action == "drop")


def _train_spoiled(recipe: Recipe, picture: float) -> None:
    """A run whose rank 1 reads pictures that are `picture` in one micro-batch of each step from the second on."""
    original = StageData.step_input

    def step_input(self: StageData, plan: StepPlan, shape: Any, items: Any, place: Any) -> StepInput:
        given = original(self, plan, shape, items, place)
        return _spoiled(given, picture) if plan.step > 0 and place.data_rank == 1 else given

    with mock.patch.object(StageData, "step_input", step_input):
        stages.train(recipe)


@pytest.mark.fault("Inf in step after step: the run ends, rank, micro-batch and samples named")
def test_too_many_bad_steps_end_the_run_with_a_report_of_rank_and_samples(tmp_path):
    recipe = tiny_recipe(tmp_path, bad_steps={"stop_after_in_a_row": 2})
    with pytest.raises(RankFailed, match="2 steps in a row were dropped, up to step 3") as failure:
        run_ranks(2, _train_spoiled, recipe, float("inf"))
    records = [json.loads(line) for line in (recipe.output_dir / BAD_STEPS_FILE).read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 3]
    # Micro-batches are dealt out in turn: the second one of rank 1 of 2 is the fourth, number 3, of 2 samples each.
    (bad,) = records[1]["micro_batches"]
    order = StageData(recipe, recipe.stages[0]).sampler.samples_of_step(2)
    assert bad == {"micro_batch": 3, "data_rank": 1, "samples": [f"r{number}" for number in order[6:8]]}
    assert f"samples {', '.join(bad['samples'])}" in str(failure.value)
    assert records[1]["gradients_not_finite"].keys() == {"0", "1"}
    assert [line["step"] for line in _metrics(recipe)] == [1, 2, 3]


@pytest.mark.fault("spike guard over a resume: the same steps dropped", everything=True)
def test_spike_guard_is_the_same_after_a_resume(tmp_path):
    settings = {"loss_spike": {"sigma": 0.5, "window": 2}, "checkpoint": {"every_steps": 3, "keep_last": 9}}
    recipe = tiny_recipe(tmp_path, **settings, tune__steps=8)
    run_ranks(1, stages.train, recipe)
    whole = _metrics(recipe)
    dropped = [json.loads(line) for line in (recipe.output_dir / BAD_STEPS_FILE).read_text().splitlines()]
    assert dropped, "no step of this run is a spike; the test needs one"
    _forget(recipe.output_dir / "checkpoints", "tune", 3)
    run_ranks(1, stages.train, recipe)
    assert _metrics(recipe) == whole


def _forget(checkpoints: Path, stage: str, after: int) -> None:
    for path in checkpoints.glob(f"{stage}-*"):
        if int(path.name.rpartition("-")[2]) > after:
            shutil.rmtree(path)
