"""Shows that fresh weights are the same in every layout, follow the seed and have the stated spread."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.parallel.observe import observe
from tests.tiny import tiny_recipe


def fresh(root: Path, ranks: int = 1, **changes: object) -> dict[str, np.ndarray]:
    """Whole tensors by checkpoint key, before the first step."""
    return observe(tiny_recipe(root, **changes), "tune", ranks, steps=0).weights


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("initialize")


@pytest.fixture(scope="module")
def weights(root: Path) -> dict[str, np.ndarray]:
    return fresh(root)


@pytest.mark.parametrize(
    "parallel",
    [
        {"tensor": 2},
        {"tensor": 2, "sequence_parallel": True},
        {"pipeline": 2},
        {"pipeline": 2, "virtual_pipeline": 2},
        {"pipeline": 2, "layers_per_stage": [3, 1]},
    ],
    ids=lambda parallel: "-".join(parallel),
)
def test_layouts_draw_the_same_weights(root, weights, parallel):
    found = fresh(root, 2, parallel=parallel)
    assert found.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_another_seed_draws_other_weights(root, weights):
    other = fresh(root, seed=6)
    for key, value in weights.items():
        if key.endswith("weight") and "norm" not in key and not key.startswith("vision."):
            assert not np.array_equal(value, other[key]), key


def test_layers_are_drawn_apart(weights):
    stacked = weights["decoder.layers.mlp.linear_fc1.weight"]
    assert stacked.shape == (4, 128, 32)
    assert len({layer.tobytes() for layer in stacked}) == 4


def test_norms_are_one_and_biases_zero(weights):
    norms = [key for key in weights if "norm" in key and not key.startswith("vision.")]
    assert len(norms) == 3
    assert all((weights[key] == 1).all() for key in norms)
    assert (weights["projector.linear_1.bias"] == 0).all()
    assert (weights["projector.linear_2.bias"] == 0).all()


# sqrt(2 / (5 h)) at the hidden size 32.
SMALL = math.sqrt(2 / 160)


@pytest.mark.parametrize(
    ("key", "deviation"),
    [
        ("embedding.word_embeddings.weight", SMALL),
        ("output_layer.weight", SMALL),
        ("decoder.layers.self_attention.linear_qkv.weight", SMALL),
        ("decoder.layers.mlp.linear_fc1.weight", SMALL),
        # Four layers: smaller by sqrt(8).
        ("decoder.layers.self_attention.linear_proj.weight", SMALL / math.sqrt(8)),
        ("decoder.layers.mlp.linear_fc2.weight", SMALL / math.sqrt(8)),
        # 1 / sqrt(fan-in): the tower's width 16, the hidden size 32.
        ("projector.linear_1.weight", 0.25),
        ("projector.linear_2.weight", 1 / math.sqrt(32)),
    ],
)
def test_matrices_have_the_stated_deviation(weights, key, deviation):
    values = weights[key]
    # Five standard errors of a standard deviation taken over so many values.
    assert values.std() == pytest.approx(deviation, rel=5 / math.sqrt(2 * values.size))
    assert abs(values.mean()) < 5 * deviation / math.sqrt(values.size)
