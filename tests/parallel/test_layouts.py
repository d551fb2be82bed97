"""Every parallel layout trains as one process does: same plan, losses, gradients and weights, dense and with STS.

Tolerances: fp32 sums over tensor-parallel ranks and micro-batches are taken in another order, which moves a gradient
by about 1e-6 of the tensor's largest value; 2e-5 leaves room for the few tensors whose entries nearly cancel. Adam's
epsilon is raised so that the update is smooth in the gradient: with 1e-8 an entry near zero would move by the full
learning rate in a direction that rounding decides.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parallel.observe import Observation, assert_same, observe
from tests.tiny import tiny_recipe

STS = {"tune__skip": {"alpha": 0.6, "epsilon": 0.4, "selection": "independent"}, "tune__compress": {"keep_ratio": 0.5}}
SMOOTH = {"optimizer": {"epsilon": 1e-2}}
LAYOUTS = {
    "tp2": (2, {"tensor": 2}),
    "tp2_sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline": 2}),
    "pp2_vp2": (2, {"pipeline": 2, "virtual_pipeline": 2}),
    "pp2_uneven": (2, {"pipeline": 2, "layers_per_stage": [1, 3]}),
    "cp2": (2, {"context": 2}),
    "tp2_sp_cp2": (4, {"tensor": 2, "sequence_parallel": True, "context": 2}),
    "pp2_cp2": (4, {"pipeline": 2, "context": 2}),
    "tp2_pp2_sp": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def references(root: Path) -> dict[tuple[bool, bool], Observation]:
    """One process: (STS, recompute) -> what it did."""
    return {
        (sts, recompute): observe(_recipe(root, sts, recompute, {}), "tune", 1)
        for sts in (False, True)
        for recompute in (False, True)
    }


def _recipe(root: Path, sts: bool, recompute: bool, parallel: dict[str, Any], **changes: Any):
    return tiny_recipe(
        root,
        parallel=parallel,
        recompute="full" if recompute else "none",
        **(SMOOTH | (STS if sts else {}) | changes),
    )


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("sts", [False, True], ids=["dense", "sts"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_trains_as_one_process(root, references, layout, sts, recompute):
    ranks, parallel = LAYOUTS[layout]
    found = observe(_recipe(root, sts, recompute, parallel), "tune", ranks)
    assert_same(found, references[sts, recompute])


def test_sts_skips_and_compresses_in_these_runs(references):
    sts, dense = references[True, False], references[False, False]
    assert any(sts.skipped) and not any(dense.skipped)
    assert sts.losses != dense.losses


@pytest.mark.parametrize("sts", [False, True], ids=["dense", "sts"])
def test_data_parallel_with_distributed_optimizer_trains_as_one_process(root, references, sts):
    for ranks, parallel in ((2, {}), (4, {"context": 2})):
        recipe = _recipe(root, sts, False, parallel, optimizer={"epsilon": 1e-2, "distributed": True})
        assert_same(observe(recipe, "tune", ranks), references[sts, False])


def test_recompute_changes_nothing(references):
    for sts in (False, True):
        plain, recomputed = references[sts, False], references[sts, True]
        assert plain.losses == recomputed.losses
        for key in plain.weights:
            np.testing.assert_array_equal(plain.weights[key], recomputed.weights[key])


def test_alignment_trains_the_projector_alone_in_every_layout(root):
    changes = {"align__compress": {"keep_ratio": 0.5}}
    expected = observe(_recipe(root, False, False, {}, **changes), "align", 1)
    assert expected.gradients.keys() == {f"projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    for layout in ("tp2_sp", "cp2", "pp2_vp2", "tp2_pp2_sp"):
        ranks, parallel = LAYOUTS[layout]
        assert_same(observe(_recipe(root, False, False, parallel, **changes), "align", ranks), expected)


def test_text_alone_trains_in_every_layout_and_leaves_the_projector_without_gradient(root):
    records = [record for record in json.loads((root / "train.json").read_text()) if "image" not in record]
    (root / "text.json").write_text(json.dumps(records))
    changes = {"tune__data": {"train": str(root / "text.json"), "images": None}}
    expected = observe(_recipe(root, True, False, {}, **changes), "tune", 1)
    assert not any(np.any(values) for key, values in expected.gradients.items() if key.startswith("projector."))
    for layout in ("tp2_sp", "tp2_sp_cp2", "pp2_vp2"):
        ranks, parallel = LAYOUTS[layout]
        assert_same(observe(_recipe(root, True, False, parallel, **changes), "tune", ranks), expected)


def test_tied_embeddings_train_alike_at_both_ends_of_the_pipeline(root):
    changes = {"model__architecture": _tied()}
    expected = observe(_recipe(root, True, False, {}, **changes), "tune", 1)
    assert "output_layer.weight" not in expected.weights
    for layout in ("pp2", "tp2_pp2_sp"):
        ranks, parallel = LAYOUTS[layout]
        assert_same(observe(_recipe(root, True, False, parallel, **changes), "tune", ranks), expected)


def _tied() -> dict[str, Any]:
    from tests.tiny import ARCHITECTURE

    return ARCHITECTURE | {"language": ARCHITECTURE["language"] | {"tied_embeddings": True}}
