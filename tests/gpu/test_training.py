"""Shows on a GPU that padding changes nothing, that frozen parts stay and cost no weight gradient, that memory does not
grow, and that two ranks on one GPU train as one does."""

import pytest

from tests.gpu.conditions import PRECISIONS, needs_two_ranks, on_gpu
from tests.gpu.recipes import inside, recipe_of, train

pytestmark = on_gpu


@pytest.mark.parametrize("changes", PRECISIONS)
def test_padding_leaves_loss_and_gradients_as_they_are(tmp_path, changes):
    found = inside("padding", recipe_of(tmp_path, "padding", 4, **changes), 4)
    # By blocks, and in bf16, a row of padding has no part in other rows. Elsewhere it may raise the largest value of a
    # tensor, by which all are scaled: over the reference kernels that turns the gradient by 0.1 of its length, FP8
    # itself by 0.12 to 0.18.
    scaled_together = changes.get("precision") == "fp8" and changes.get("fp8_recipe") != "blockwise"
    loss, gradient = (5e-3, 0.2) if scaled_together else (1e-3, 0.03)
    assert found["added"] >= 64 and found["loss"] < loss and found["gradient"] < gradient
    # What the measure says of gradients that have little to do with each other.
    assert found["gradient_of_others"] > 0.5


@pytest.mark.parametrize("changes", PRECISIONS)
def test_a_frozen_language_model_has_no_products_for_weight_gradients(tmp_path, changes):
    found = inside("weight_gradients", recipe_of(tmp_path, "kernels", 4, **changes), 4)
    # Four products in each of 8 layers and the output layer. Equal but for a product that a library cuts in two.
    assert found["forward"] >= 33
    assert found["frozen"] < 2.5 * found["forward"] < found["trained"]


@pytest.mark.parametrize("changes", PRECISIONS)
def test_memory_does_not_grow_while_layers_are_skipped(tmp_path, changes):
    held = inside("memory", recipe_of(tmp_path, "memory", 500, tune__skip={"alpha": 0.5}, **changes), 500)
    assert held["steps"] == 500 and 0 < held["late"] <= held["early"]


def test_frozen_parts_get_no_gradient_and_do_not_move(tmp_path):
    found = inside("frozen", recipe_of(tmp_path, "frozen", 20), 20)
    assert found["frozen"] > 0 and found["unchanged"] and found["gradients"] == 0


@needs_two_ranks
@pytest.mark.parametrize("parallel", [{"tensor": 2, "sequence_parallel": True}, {"pipeline": 2}])
def test_two_ranks_train_as_one(tmp_path, parallel):
    one = train(recipe_of(tmp_path, "one", 20))
    two = train(recipe_of(tmp_path, "two", 20, parallel=parallel), ranks=2, MEGATRON_STS_SHARE_GPU="1")
    # bf16: sums of other orders.
    assert two == pytest.approx(one, rel=5e-3)
