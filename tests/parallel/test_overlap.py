"""Everything on at once: skipping with overlapped reduction and gathering, in every layout, trains as one process does.

Against the same layout without overlap, fp32: to the bit, since the same two gradients are summed. With clipping 1e-6:
the norm is summed over shards that lie elsewhere. Against one process the tolerances of test_layouts.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parallel.observe import Observation, assert_same, observe
from tests.tiny import ARCHITECTURE, tiny_recipe

# Four groups of one layer: a step skips all layers, whole stages too, or none.
SKIP = {"alpha": 0.6, "epsilon": 0.0, "selection": "balanced", "skip_groups": 4}
# Layers of 9,280 parameters, their largest matrix of 4,096: buckets of one layer alone, and of two.
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_parameters": 3000}
SMOOTH = {"epsilon": 1e-2, "clip_grad": 0.0, "weight_decay": 0.1}
TIED = ARCHITECTURE | {"language": ARCHITECTURE["language"] | {"tied_embeddings": True}}
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "dp2": (2, {}, {}),
    "dp2_recompute": (2, {}, {"recompute": ["core_attn", "layernorm", "mlp"]}),
    "dp2_momentum": (2, {}, {"tune__skip": SKIP | {"parameters": "momentum"}}),
    "dp2_projector_frozen": (2, {}, {"tune__trains": ["language"], "tune__learning_rate": {"projector": None}}),
    "dp2_pp2_language_frozen": (
        4,
        {"pipeline": 2},
        {"tune__trains": ["projector"], "tune__learning_rate": {"language": None}},
    ),
    "dp2_tp2_sp_full": (4, {"tensor": 2, "sequence_parallel": True}, {"recompute": "full"}),
    "dp2_pp2_tied": (4, {"pipeline": 2}, {"model__architecture": TIED}),
    "dp2_pp2_uneven_full": (4, {"pipeline": 2, "layers_per_stage": [1, 3]}, {"recompute": "full"}),
    "dp2_pp2_vp2": (4, {"pipeline": 2, "virtual_pipeline": 2}, {}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("overlap")


def _observe(root: Path, ranks: int, parallel: dict, optimizer: dict, changes: dict) -> Observation:
    recipe = tiny_recipe(root, parallel=parallel, optimizer=SMOOTH | optimizer, **{"tune__skip": SKIP} | changes)
    return observe(recipe, "tune", ranks, steps=4)


@pytest.mark.parametrize("case", CASES)
def test_overlap_changes_nothing_and_trains_as_one_process(root, case):
    ranks, parallel, changes = CASES[case]
    distributed = {"distributed": True}
    plain = _observe(root, ranks, parallel, distributed, changes)
    found = _observe(root, ranks, parallel | OVERLAP, distributed, changes)
    assert [] in plain.skipped and [0, 1, 2, 3] in plain.skipped
    assert found.losses == plain.losses and found.skipped == plain.skipped
    for key, values in plain.weights.items():
        np.testing.assert_array_equal(found.weights[key], values, err_msg=key)
    one = _observe(root, 1, {}, {}, changes)
    one.gradients.clear()
    assert_same(found, one)


def test_overlapped_reduction_without_the_distributed_optimizer_changes_nothing(root):
    reduce = {name: value for name, value in OVERLAP.items() if name != "overlap_param_gather"}
    plain = _observe(root, 2, {}, {}, {})
    found = _observe(root, 2, reduce, {}, {})
    assert found.losses == plain.losses and found.grad_norms == plain.grad_norms
    for kind in ("gradients", "weights"):
        for key, values in getattr(plain, kind).items():
            np.testing.assert_array_equal(getattr(found, kind)[key], values, err_msg=key)


def test_clipping_sees_the_same_norm_under_overlap(root):
    # Norms are about 1 here, so that clipping at 0.1 acts in every step.
    clipped = {"distributed": True, "clip_grad": 0.1}
    plain = _observe(root, 2, {}, clipped, {})
    found = _observe(root, 2, OVERLAP, clipped, {})
    assert min(plain.grad_norms) > 0.1
    np.testing.assert_allclose(found.grad_norms, plain.grad_norms, rtol=1e-6)
    np.testing.assert_allclose(found.losses, plain.losses, rtol=1e-6)


def test_trained_tower_without_a_picture_in_the_last_micro_batch_does_not_hold_up_its_bucket(root):
    # Every sixth record is text alone; with micro-batches of one sample some end a step without a picture.
    changes = {
        "tune__trains": ["projector", "language", "vision"],
        "tune__learning_rate": {"vision": 1e-3},
        "tune__batch": {"micro": 1},
    }
    plain = _observe(root, 2, {}, {"distributed": True}, changes)
    found = _observe(root, 2, OVERLAP, {"distributed": True}, changes)
    assert found.losses == plain.losses
    for key, values in plain.weights.items():
        np.testing.assert_array_equal(found.weights[key], values, err_msg=key)
