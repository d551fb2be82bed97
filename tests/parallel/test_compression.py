"""Every strategy of the Visual Token Compressor trains in every layout as in one process.

Micro-batches have two pictures, one or none, so that ranks have unequal shares of the tower's work, or no part in it.
The layouts pad to different multiples. Tower and projector are trained where it says so, with their gradients compared.
"""

import pytest

from tests.parallel.observe import assert_same, observe_all
from tests.tiny import tiny_recipe

SMOOTH = {"optimizer": {"epsilon": 1e-2}}
TRAINED_TOWER = {"tune__trains": ["projector", "vision"], "tune__learning_rate": {"language": None, "vision": 1e-3}}
CASES = {
    "uniform, scheduled": {"tune__compress": {"schedule": {"kind": "linear", "start": 0.3, "end": 1.0}}},
    "text_guided": {"tune__compress": {"strategy": "text_guided", "keep_ratio": 0.4}},
    "random, trained tower": TRAINED_TOWER | {"tune__compress": {"strategy": "random", "keep_ratio": 0.3}},
    "text_guided, trained tower": TRAINED_TOWER | {"tune__compress": {"strategy": "text_guided", "keep_tokens": 3}},
    "mean_pool, trained tower": TRAINED_TOWER | {"tune__compress": {"strategy": "mean_pool"}, "tune__batch__micro": 1},
}
LAYOUTS = {
    "tp2": (2, {"tensor": 2}),
    "tp2_sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline": 2}),
    "tp2_pp2_sp": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("compression")


def _recipes(root, parallel):
    return [tiny_recipe(root, parallel=parallel, **(SMOOTH | case)) for case in CASES.values()]


@pytest.fixture(scope="module")
def references(root):
    return observe_all(_recipes(root, {}), "tune", 1, steps=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strategies_train_as_in_one_process(root, references, layout):
    ranks, parallel = LAYOUTS[layout]
    for found, expected in zip(observe_all(_recipes(root, parallel), "tune", ranks, steps=2), references, strict=True):
        assert_same(found, expected)


def test_strategies_differ_and_reach_projector_and_tower(references):
    assert len({observation.losses[0] for observation in references}) == len(references)
    for name, observation in zip(CASES, references, strict=True):
        gradients = observation.gradients
        assert all(gradients[f"projector.linear_{number}.weight"].any() for number in (1, 2))
        assert any(key.startswith("vision.") for key in gradients) == ("trained tower" in name)
