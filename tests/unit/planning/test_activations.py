"""Shows what a 7B layer keeps, by hand, and how many micro-batches keep it in each schedule."""

import pytest

from megatron_sts.planning.activations import largest_activations, layer_activations, with_recompute
from megatron_sts.sts import StepPlan, full_plan

# h, f and attention heads of the 7B model; every number of a row in bf16.
H, F, HEADS = 4096, 11008, 32
DENSE = full_plan(576)


def row(make, **changes) -> float:
    recipe = make(**changes)
    stage = recipe.stage("tune")
    found = layer_activations(recipe, stage, recipe.precision == "fp8")
    return with_recompute(recipe, stage, found).kept()


def test_a_trained_layer_keeps_sixteen_h_and_six_f(make):
    assert row(make) == 16 * H + 6 * F + 4 * HEADS + 8
    assert row(make, recompute=["layernorm"]) == 12 * H + 6 * F + 4 * HEADS
    assert row(make, recompute=["mlp"]) == 14 * H + 4 * HEADS + 4
    assert row(make, recompute=["layernorm", "mlp"]) == 12 * H + 4 * HEADS
    assert row(make, recompute="full") == 2 * H
    # Kept in FP8: both norms' outputs, the input of the second product.
    assert row(make, precision="fp8") == 14 * H + 5 * F + 4 * HEADS + 8


def test_core_attention_recomputed_frees_nothing(make):
    assert row(make, recompute=["core_attn"]) == row(make)


def test_a_frozen_layer_keeps_no_input_of_a_product(make):
    frozen = row(make, tune__trains=["projector"], tune__learning_rate={"projector": 1e-3})
    assert frozen == 12 * H + 4 * F + 4 * HEADS + 8


def test_tensor_parallel_ranks_share_attention_and_mlp_and_with_the_sequence_the_rest(make):
    shared = 8 * H + 6 * F + 4 * HEADS
    assert row(make, parallel={"tensor": 2}) == shared / 2 + 8 * H + 8
    assert row(make, parallel={"tensor": 2, "sequence_parallel": True}) == (shared + 8 * H + 8) / 2


@pytest.mark.parametrize(
    ("parallel", "in_flight"),
    [({"pipeline": 4}, [4, 3, 2, 1]), ({"pipeline": 2, "virtual_pipeline": 2}, [5, 3]), ({}, [1])],
)
def test_passes_under_way_are_those_of_the_schedule(make, parallel, in_flight):
    recipe = make(parallel=parallel)
    stage = recipe.stage("tune")
    ranks = range(recipe.parallel.pipeline)
    found = [largest_activations(recipe, stage, rank, 16, [DENSE]) for rank in ranks]
    assert [one.in_flight for one in found] == in_flight
    if recipe.parallel.pipeline == 4:
        # Two samples of 916 tokens, eight layers, three micro-batches; logits on the last stage alone.
        assert found[1].kept == pytest.approx(3 * 8 * 2 * 916 * (16 * H + 6 * F + 4 * HEADS + 8))
        assert [one.logits for one in found] == [0, 0, 0, pytest.approx(2 * 916 * 6 * 32000)]


def test_of_the_steps_the_one_that_keeps_most_counts(make):
    recipe = make()
    stage = recipe.stage("tune")
    layer = 2 * 916 * row(make)
    few = StepPlan(0, frozenset(range(20)), DENSE.kept_tokens, 576)
    more = StepPlan(1, frozenset(range(10)), DENSE.kept_tokens, 576, layers_skipped_for_visual=frozenset({31}))
    dense, found, fewer = (
        largest_activations(recipe, stage, 0, 4, plans).kept for plans in ([DENSE], [few, more, few], [few])
    )
    assert dense - fewer == pytest.approx(20 * layer)
    # One layer has what follows attention for 340 of 916 rows, and once more what it puts back.
    after = 4 * H + 6 * F + 4
    assert dense - found == pytest.approx(10 * layer + 2 * (576 * after - 340 * 2 * H))
