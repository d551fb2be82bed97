"""A skipped layer is left alone: its weights and moments stay bitwise as they were, under every optimiser."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_sts.config import Recipe
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import StepPlan
from megatron_sts.train.loop import prepare_stage
from megatron_sts.train.optimizer_state import stepped_tensors
from megatron_sts.train.resume import Start
from megatron_sts.train.stage_data import StageData
from tests.parallel.observe import observe, step_inputs
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe

OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_parameters": 3000}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("skipping")


def _state_by_layer(parts: Any) -> dict[int | None, list[np.ndarray]]:
    """Weights and optimiser state by language layer, None for everything outside the layers."""
    layers = {
        id(parameter): layer.layer_number - 1
        for chunk in parts.chunks
        for layer in chunk.language.decoder.layers
        for parameter in layer.parameters()
    }
    state: dict[int | None, list[np.ndarray]] = {}
    for inner in parts.optimizer.inner.chained_optimizers:
        for stepped in stepped_tensors(inner):
            moments = [value for name, value in sorted(inner.optimizer.state[stepped.tensor].items()) if name != "step"]
            tensors = [stepped.parameter, stepped.tensor, *moments]
            state.setdefault(layers.get(id(stepped.parameter)), []).extend(
                tensor.detach().to(torch.float64).numpy().copy() for tensor in tensors if tensor is not None
            )
    return state


def _step_with_layers_skipped(recipe: Recipe, skipped: list[frozenset[int]]) -> list[Any]:
    place = start_groups(recipe.parallel, recipe.seed)
    stage = recipe.stage("tune")
    data = StageData(recipe, stage)
    parts = prepare_stage(recipe, stage, data.total_steps, Start(None, 0), place)
    states = [_state_by_layer(parts)]
    for step, given in enumerate(step_inputs(data, place, len(skipped))):
        plan = StepPlan(step, skipped[step], given.plan.kept_tokens, given.plan.total_visual_tokens)
        result = parts.step.run(replace(given, plan=plan))
        assert np.isfinite(result.grad_norm) and not result.dropped
        parts.step.gather_weights()
        states.append(_state_by_layer(parts))
    return states


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (1, {}),
        (1, {"optimizer": {"weight_decay": 0.1}}),
        (1, {"optimizer": {"kind": "sgd", "weight_decay": 0.1}}),
        (1, {"precision": "bf16", "optimizer": {"weight_decay": 0.1}}),
        (2, {"optimizer": {"distributed": True, "weight_decay": 0.1}}),
        (2, {"precision": "bf16", "optimizer": {"distributed": True}}),
        (2, {"parallel": {"tensor": 2, "sequence_parallel": True}}),
        (2, {"precision": "bf16", "optimizer": {"distributed": True}, "parallel": OVERLAP}),
        (2, {"parallel": {"pipeline": 2}}),
        # Outputs sent on are freed: a middle stage that skips its only layer must not free what it received.
        (4, {"parallel": {"pipeline": 4}}),
        (2, {"parallel": {"pipeline": 2, "virtual_pipeline": 2}, "recompute": "full"}),
    ],
    ids=[
        "adam",
        "adam_decay",
        "sgd",
        "bf16",
        "dp2_distributed",
        "dp2_bf16_distributed",
        "tp2_sp",
        "dp2_bf16_distributed_overlap",
        "pp2",
        "pp4",
        "pp2_vp2_recompute",
    ],
)
def test_weights_and_moments_of_skipped_layers_are_bitwise_unchanged(root, ranks, changes):
    # The first step skips too; the third and the fourth skip a whole pipeline stage, once the one that sends.
    skipped = [frozenset({1, 3}), frozenset(), frozenset({2, 3}), frozenset({0, 1})]
    recipe = tiny_recipe(root, **changes)
    for states in run_ranks(ranks, _step_with_layers_skipped, recipe, skipped):
        for before, after, layers in zip(states, states[1:], skipped, strict=False):
            for layer, held in before.items():
                # Shards of the distributed optimiser may be empty on a rank.
                same = all(np.array_equal(one, two) for one, two in zip(held, after[layer], strict=False))
                assert same == (layer in layers) or all(array.size == 0 for array in held), (layer, layers)


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_with_momentum_skipped_layers_move_as_under_a_gradient_of_zero(root, kind):
    skip = {"alpha": 0.5, "selection": "independent", "parameters": "momentum"}
    recipe = tiny_recipe(root, optimizer={"kind": kind}, tune__skip=skip)
    _, before, after = run_ranks(1, _step_with_layers_skipped, recipe, [frozenset(), frozenset({1})])[0]
    # Per parameter: the model's tensor, the one that is stepped (here the same), then its moments.
    each = 4 if kind == "adam" else 3
    for start in range(0, len(before[1]), each):
        weights, first_moment = before[1][start], before[1][start + 2]
        # Adam: beta1 = 0.9 times the first moment; SGD: 0.9 times the momentum. No gradient is added to it.
        np.testing.assert_allclose(after[1][start + 2], 0.9 * first_moment, rtol=1e-6)
        assert np.any(weights != after[1][start])


def test_zero_sparsity_is_plain_training_to_the_bit(root):
    plain = observe(tiny_recipe(root), "tune", 1)
    zero = observe(tiny_recipe(root, tune__skip={"alpha": 0.0}, tune__compress={"keep_ratio": 1.0}), "tune", 1)
    assert zero.losses == plain.losses and zero.grad_norms == plain.grad_norms
    for kind in ("gradients", "weights"):
        one, two = getattr(plain, kind), getattr(zero, kind)
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
