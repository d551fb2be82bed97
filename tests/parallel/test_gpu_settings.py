"""Shows that the fused loss and activation, which are on where there is a GPU, train as the plain ones do.

They run here as torch runs them without a compiler. fp32, where the loss is not fused: the two differ by the order of
sums. bf16: a weight has 8 bits, and the fused loss rounds the gradient of the logits to as many.
"""

from unittest.mock import patch

import numpy as np
import pytest

from megatron_sts.config import Recipe
from megatron_sts.model import transformer_config
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _train(recipe: Recipe, as_on_gpu: bool) -> tuple[tuple[bool, bool], dict[str, np.ndarray]]:
    stage = recipe.stage("tune")
    with patch.object(transformer_config, "has_gpu", lambda: as_on_gpu):
        stepper = Stepper(recipe, stage, 3, start_groups(recipe.parallel, recipe.seed))
    (chunk,) = stepper.parts.chunks
    planner = StagePlanner(recipe, stage, 3, 3)
    for step in range(3):
        stepper.time(planner.plan(step))
    fused = (chunk.config.cross_entropy_loss_fusion, chunk.config.bias_activation_fusion)
    return fused, {name: parameter.detach().float().numpy().copy() for name, parameter in chunk.named_parameters()}


def _both(recipe: Recipe) -> list[tuple[tuple[bool, bool], dict[str, np.ndarray]]]:
    return [_train(recipe, as_on_gpu) for as_on_gpu in (False, True)]


@pytest.mark.parametrize(
    ("precision", "parallel"),
    [("bf16", {}), ("fp32", {}), ("fp32", {"tensor": 2, "sequence_parallel": True}), ("fp32", {"pipeline": 2})],
)
def test_fused_functions_train_as_the_plain_ones(tmp_path, precision, parallel):
    ranks = parallel.get("tensor", 1) * parallel.get("pipeline", 1)
    # Without Adam, which makes a step of any gradient's sign.
    changes = {"precision": precision, "parallel": parallel, "optimizer": {"kind": "sgd"}}
    recipe = tiny_recipe(tmp_path, tune__data={"text_tokens": 20}, **changes)
    tolerance = {"atol": 1e-6} if precision == "fp32" else {"rtol": 2**-7, "atol": 1e-3}
    for (plain_is_fused, plain), (fused, found) in run_ranks(ranks, _both, recipe):
        assert plain_is_fused == (False, False) and fused == (precision == "bf16", True)
        for name, weight in plain.items():
            np.testing.assert_allclose(found[name], weight, err_msg=name, **tolerance)
