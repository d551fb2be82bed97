"""Shows that a micro-batch costs a rank what its parts cost, by hand and against step_flops."""

import pytest

from megatron_sts.planning.costs import PassCost, micro_batch_costs
from megatron_sts.sts import step_flops

# One layer of a 7B model over 576 + 340 tokens, by hand: 4 h^2 + 3 h f a token, 2 S^2 h for the causal half.
LENGTH = 916
MATRICES = 2 * LENGTH * (4 * 4096**2 + 3 * 4096 * 11008)
ATTENTION = 2 * LENGTH**2 * 4096
MLP = 2 * LENGTH * 3 * 4096 * 11008
HEAD = 2 * LENGTH * 4096 * 32000


def test_a_trained_layer_costs_one_forward_and_twice_that_backward(make):
    recipe = make()
    costs = micro_batch_costs(recipe, recipe.stage("tune"), 576)
    assert costs.layer.forward == 2 * (MATRICES + ATTENTION)
    assert costs.layer.backward == 2 * (2 * MATRICES + 2 * ATTENTION)
    assert costs.last == PassCost(2 * HEAD, 4 * HEAD)


def test_a_frozen_layer_has_no_weight_gradients(make):
    recipe = make(tune__trains=["projector"], tune__learning_rate={"projector": 1e-3})
    costs = micro_batch_costs(recipe, recipe.stage("tune"), 576)
    assert costs.layer.backward == 2 * (MATRICES + 2 * ATTENTION)
    assert costs.last == PassCost(2 * HEAD, 2 * HEAD)


@pytest.mark.parametrize(
    ("recompute", "again"),
    [(["core_attn"], ATTENTION), (["mlp"], MLP), (["layernorm"], 0), ("full", MATRICES + ATTENTION)],
)
def test_recomputation_adds_to_the_backward_pass(make, recompute, again):
    recipe = make(recompute=recompute)
    costs = micro_batch_costs(recipe, recipe.stage("tune"), 576)
    assert costs.layer.forward == 2 * (MATRICES + ATTENTION)
    assert costs.layer.backward == 2 * (2 * MATRICES + 2 * ATTENTION + again)


def test_tensor_parallel_ranks_share_layers_logits_and_the_images_of_the_tower(make):
    one, eight = make(), make(parallel={"tensor": 8})
    alone, shared = (micro_batch_costs(recipe, recipe.stage("tune"), 576) for recipe in (one, eight))
    assert shared.layer.total == pytest.approx(alone.layer.total / 8)
    assert shared.last.total == pytest.approx(alone.last.total / 8)
    # Two images for eight ranks: the busiest rank has one; all project every kept token.
    projector = 2 * 576 * (1024 * 4096 + 4096 * 4096) * 2
    tower = alone.first.forward - projector
    assert shared.first.forward == pytest.approx(tower / 2 + projector)
    assert shared.first.backward == alone.first.backward
    # 8 ranks: 916 tokens are padded to 920, and each rank projects its own chunk's.
    sequence = make(parallel={"tensor": 8, "sequence_parallel": True})
    chunked = micro_batch_costs(sequence, sequence.stage("tune"), 576)
    assert chunked.first.forward == pytest.approx(tower / 2 + projector / 8)


def test_context_parallel_ranks_share_everything(make):
    # 916 tokens are a multiple of four, two chunks a rank; two images, one a rank.
    one, two = make(), make(parallel={"context": 2})
    alone, shared = (micro_batch_costs(recipe, recipe.stage("tune"), 576) for recipe in (one, two))
    assert shared.layer.total == pytest.approx(alone.layer.total / 2)
    assert shared.last.total == pytest.approx(alone.last.total / 2)
    assert shared.first.forward == pytest.approx(alone.first.forward / 2)
    assert shared.first.backward == pytest.approx(alone.first.backward / 2)


def test_a_trained_tower_is_shared_out_with_its_backward_pass(make):
    trained = {"tune__trains": ["vision"], "tune__learning_rate": {"projector": None, "language": None, "vision": 1e-3}}
    alone, chunked = (make(parallel=parallel, **trained) for parallel in ({}, {"tensor": 2, "sequence_parallel": True}))
    first = [micro_batch_costs(recipe, recipe.stage("tune"), 576).first for recipe in (alone, chunked)]
    assert first[1].forward == pytest.approx(first[0].forward / 2)
    assert first[1].backward == pytest.approx(first[0].backward / 2)


def test_scoring_for_text_guided_adds_one_projection_of_all_tokens(make):
    costs = []
    for strategy in ("uniform", "text_guided"):
        recipe = make(tune__compress={"strategy": strategy, "keep_ratio": 0.25})
        costs.append(micro_batch_costs(recipe, recipe.stage("tune"), 144).first)
    assert costs[1].forward - costs[0].forward == pytest.approx(2 * 2 * 576 * (1024 * 4096 + 4096 * 4096))
    assert costs[1].backward == pytest.approx(costs[0].backward)


def test_all_parts_together_are_the_step(make):
    recipe = make()
    stage = recipe.stage("tune")
    costs = micro_batch_costs(recipe, stage, 576)
    forward, backward = costs.of_stages([(20, 0), (12, 0)])
    step = step_flops(
        recipe.architecture, stage.trains, rows=2, images=2, length=LENGTH, visual_tokens=576, layers_run=32
    )
    assert sum(forward) + sum(backward) == pytest.approx(step.total)


def test_a_layer_with_its_mlp_for_text_alone(make):
    """Of 916 rows 340 go through 3 h f multiplications each; recomputed as it ran."""
    left_out = 2 * 576 * 3 * 4096 * 11008
    for recompute, again in (("none", 0), (["mlp"], MLP - left_out), ("full", MATRICES + ATTENTION - left_out)):
        recipe = make(recompute=recompute, parallel={"tensor": 2})
        costs = micro_batch_costs(recipe, recipe.stage("tune"), 576)
        assert costs.layer_for_text.forward == pytest.approx(MATRICES + ATTENTION - left_out)
        assert costs.layer_for_text.backward == pytest.approx(2 * (MATRICES + ATTENTION - left_out) + again)
    some, none = costs.of_stages([(20, 8), (12, 0)]), costs.of_stages([(20, 0), (12, 0)])
    for found, dense, per_layer in zip(some, none, (left_out, 2 * left_out + left_out), strict=True):
        assert dense[0] - found[0] == pytest.approx(8 * per_layer)
        assert dense[1] == found[1]
