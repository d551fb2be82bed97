"""Shows that a forecast is the method's known figures, sums of its own plans, and what the simulation says."""

import pytest

from megatron_sts.errors import ConfigError, DataError
from megatron_sts.planning import forecast, forecast_text, step_records
from megatron_sts.sts import step_flops


def test_known_savings_of_llava_7b(make):
    """2.99x (with all layers of the tower counted) for a quarter of the visual tokens, 1.19x for alpha 0.5."""
    align, tune = forecast(make()).stages
    assert align.work.ideal_speedup == pytest.approx(2.99, rel=0.015)
    assert tune.work.ideal_speedup == pytest.approx(1.19, abs=0.005)
    assert (align.work.length, align.work.length_dense, tune.work.length) == (60 + 144, 60 + 576, 340 + 576)
    assert (align.planned.steps, tune.planned.steps) == (100, 300)


def test_probabilities_follow_the_formula(make):
    tune = forecast(make(tune__skip={"alpha": 0.5, "epsilon": 0.5, "selection": "independent"})).stages[1]
    # The mean of (1 - t / T)^2 over t = 0 .. T-1 is (T + 1)(2 T + 1) / (6 T^2).
    decay = 301 * 601 / (6 * 300**2)
    assert tune.sparsity.skip.overall == pytest.approx(0.5 * decay)
    assert tune.sparsity.skip.mean[0] == pytest.approx(0.25 * decay)
    assert (tune.sparsity.skip.highest[0], tune.sparsity.skip.highest[31]) == (0.25, 0.75)
    assert tune.sparsity.skip.lowest[31] == pytest.approx(0.75 / 300**2)


@pytest.mark.parametrize("selection", ["balanced", "independent"])
def test_totals_are_sums_over_the_plans_of_the_steps(make, selection):
    recipe = make(tune__skip={"alpha": 0.5, "selection": selection}, parallel={"pipeline": 4})
    tune = forecast(recipe).stages[1]
    records = [record for record in step_records(recipe, 10**6) if record["stage"] == "tune"]
    assert [record["step"] for record in records] == list(range(1, 301))
    run = [32 - len(record["layers_skipped"]) for record in records]
    assert tune.sparsity.layers_run == (sum(run) / 300, min(run), max(run))
    sizes = {"rows": 32, "images": 32, "length": 916, "visual_tokens": 576}
    architecture, trains = recipe.architecture, ("projector", "language")
    executed = sum(step_flops(architecture, trains, layers_run=count, **sizes).total for count in run)
    assert tune.work.flops_executed == pytest.approx(executed)
    assert tune.work.flops_dense == pytest.approx(300 * step_flops(architecture, trains, layers_run=32, **sizes).total)


def test_layers_skipped_for_visual_tokens_cost_their_text(make):
    visual = {"tokens": "visual", "alpha": 0.75, "schedule": "constant"}
    recipe = make(tune__skip=[{"alpha": 0.25, "schedule": "constant"}, visual], parallel={"pipeline": 4})
    found = forecast(recipe)
    tune = found.stages[1]
    records = [record for record in step_records(recipe, 10**6) if record["stage"] == "tune"]
    counts = [(32 - len(record["layers_skipped"]), len(record["layers_skipped_for_visual"])) for record in records]
    # Two of eight layers are skipped; of the six that are left, those that the draw had named and as many more.
    assert set(counts) == {(24, 24)}
    assert tune.sparsity.layers_for_text == (24, 24, 24) and tune.sparsity.skip_for_visual.overall == 0.75
    sizes = {"rows": 32, "images": 32, "length": 916, "visual_tokens": 576, "text_tokens": 32 * 340}
    executed = step_flops(
        recipe.architecture, ("projector", "language"), layers_run=24, layers_skipped_for_visual=24, **sizes
    )
    assert tune.work.flops_executed == pytest.approx(300 * executed.total)
    # Every stage does as much less.
    assert tune.work.predictions["balanced"].retained_saving > 0.95
    assert "layers whose MLP sees text alone: 24.00 of 32 on average, 24 to 24 in a step" in forecast_text(found)
    alone = forecast(make(tune__skip=visual)).stages[1].work
    # 32% of the layers' FLOPs, of what the tower, the projector and the logits add to them.
    assert alone.ideal_speedup == pytest.approx(1.4, abs=0.05)
    assert alone.planned.speedup == pytest.approx(alone.ideal_speedup, rel=0.01)


def test_without_a_pipeline_the_whole_saving_is_kept(make):
    tune = forecast(make()).stages[1].work
    for prediction in tune.predictions.values():
        assert prediction.retained_saving == pytest.approx(1.0)
        assert prediction.busy == (1.0,) and prediction.bubble == 0.0
    assert tune.predictions["balanced"].speedup == pytest.approx(tune.ideal_speedup, rel=0.01)
    assert tune.proposed.layers == (32,)


def test_balanced_keeps_more_than_independent_and_most_on_the_proposed_split(make):
    found = forecast(make(parallel={"pipeline": 8}))
    tune = found.stages[1].work
    balanced, independent = tune.predictions["balanced"], tune.predictions["independent"]
    assert tune.planned == balanced
    assert balanced.retained_saving > independent.retained_saving + 0.2
    assert sum(tune.proposed.layers) == 32
    for split in (tune.proposed, found.proposed):
        assert split.planned_speedup > 1.0 and split.balanced_speedup > 1.0


def test_a_dense_stage_saves_nothing(make):
    tune = forecast(make(tune__skip=None, parallel={"pipeline": 4})).stages[1].work
    assert tune.ideal_speedup == 1.0 and tune.planned.speedup == pytest.approx(1.0)
    assert tune.planned.retained_saving is None


def test_more_data_parallel_ranks_leave_fewer_micro_batches_and_a_larger_bubble(make):
    recipe = make(parallel={"pipeline": 4}, optimizer={"distributed": True})
    one, four = forecast(recipe, 1).stages[1], forecast(recipe, 4).stages[1]
    assert (one.micro_batches, four.micro_batches) == (16, 4)
    assert four.work.planned.dense_bubble > one.work.planned.dense_bubble
    assert four.bytes[1].optimizer * 4 == one.bytes[1].optimizer


def test_full_recompute_makes_the_step_longer_and_the_flops_are_the_models(make):
    plain, again = forecast(make()).stages[1].work, forecast(make(recompute="full")).stages[1].work
    assert again.flops_dense == plain.flops_dense
    # Of four passes through a layer instead of three.
    assert 1.2 < again.planned.dense_step_time / plain.planned.dense_step_time < 4 / 3


def test_a_selection_that_the_layout_cannot_have_is_left_out(make):
    skip = {"alpha": 0.5, "selection": "independent", "never_skip": list(range(6))}
    found = forecast(make(parallel={"pipeline": 4}, tune__skip=skip))
    assert found.stages[1].work.predictions["balanced"] is None
    assert "balanced not possible on this layout" in forecast_text(found)


def test_what_independent_draws_lose_is_said_with_the_remedy(make):
    skip = {"alpha": 0.5, "selection": "independent"}
    text = forecast_text(forecast(make(parallel={"pipeline": 8}, tune__skip=skip)))
    assert "WARNING" in text and "set stages.tune.skip.selection: balanced" in text
    assert "WARNING: with independent" not in forecast_text(forecast(make(parallel={"pipeline": 8})))
    assert "WARNING: with independent" not in forecast_text(forecast(make(tune__skip=skip)))


def test_without_text_tokens_there_are_steps_and_bytes_and_the_remedy(make):
    recipe = make(tune__data={"train": "none", "samples": 9600})
    found = forecast(recipe)
    assert found.stages[1].work is None and found.stages[1].bytes[0].total > 0
    assert "give stages.tune.data.text_tokens" in forecast_text(found)
    assert found.proposed.layers == (32,)


@pytest.mark.parametrize("changes", [{}, {"tune__epochs": None, "tune__steps": 5, "tune__skip__progress": "epoch"}])
def test_records_that_the_plan_depends_on_must_be_known(make, changes):
    recipe = make(tune__data={"train": "none/tune.json", "text_tokens": 340}, **changes)
    with pytest.raises(ConfigError, match=r"give stages\.tune\.data\.samples"):
        forecast(recipe)


def test_records_of_a_file_count_and_must_be_those_of_the_recipe(make, tmp_path):
    data = tmp_path / "tune.jsonl"
    data.write_text("{}\n\n{}\n" * 40)
    given = {"train": str(data), "text_tokens": 340}
    assert forecast(make(tune__data=given)).stages[1].planned.samples == 80
    with pytest.raises(ConfigError, match=r"data\.samples is 9600, but .* holds 80"):
        forecast(make(tune__data=given | {"samples": 9600}))
    data.write_text("{")
    with pytest.raises(DataError, match="not valid json"):
        forecast(make(tune__data=given))


def test_a_layout_that_training_would_refuse_is_refused(make):
    with pytest.raises(ConfigError, match="not divisible by"):
        forecast(make(), data_parallel=3)
    with pytest.raises(ConfigError, match="skip_groups"):
        forecast(make(parallel={"pipeline": 4}, tune__skip={"alpha": 0.5, "skip_groups": 2}))


def test_one_is_not_told_as_several(make):
    recipe = make(parallel={"pipeline": 4}, optimizer={"distributed": True})
    assert "(4 micro-batches of " in forecast_text(forecast(recipe, 4))
    few = forecast_text(forecast(make(tune__batch={"global": 2, "micro": 2}, tune__steps=1, tune__epochs=None)))
    assert few.startswith("layout on 1 rank: ")
    assert " samples, 1 step of 2 (1 micro-batch of 2 a rank)" in few


def test_what_a_mean_sample_does_not_show_is_said(make):
    packed = {"train": "none/tune.json", "images": "none", "samples": 9600, "text_tokens": 340, "packing": True}
    text = forecast_text(forecast(make(tune__data=packed)))
    align, tune = text.split("tune: ")
    assert "not in it: padding to the longest sample of a step, which prepare_data.py check" in align
    assert "not in it: packing, which prepare_data.py check" in tune


def test_the_forward_passes_that_full_steps_distill_from_count(make):
    visual = {"tokens": "visual", "alpha": 0.75, "schedule": "constant", "full_share": 0.2}
    plain, distilling = (make(tune__skip=visual | more) for more in ({}, {"distill": 1.0}))
    before, after = (forecast(recipe).stages[1].work for recipe in (plain, distilling))
    sizes = {"rows": 32, "images": 32, "length": 916, "visual_tokens": 576, "text_tokens": 32 * 340}
    forward = step_flops(plain.architecture, (), layers_run=32, layers_skipped_for_visual=24, **sizes).total
    assert after.flops_executed - before.flops_executed == pytest.approx(60 * forward)
    assert after.flops_dense == before.flops_dense
    # Without a pipeline time is FLOPs.
    assert before.planned.step_time / after.planned.step_time == pytest.approx(
        before.flops_executed / after.flops_executed, rel=0.01
    )
    assert "distilled: 20.0% of the steps go forward once more" in forecast_text(forecast(distilling))
