"""Language models that are not built like Llama train as one process does in every layout, also with the tower trained.

The tower is a SigLIP that gives an odd number of features. Tolerances are those of test_layouts.py. What one process
computes is compared with `transformers` in tests/unit/hf/test_families.py and test_skipping_for_visual.py.
"""

from pathlib import Path
from typing import Any

import pytest

from megatron_sts.config import Recipe
from tests.parallel.observe import Observation, assert_same, observe_all
from tests.tiny import ARCHITECTURE, tiny_recipe

VISION = ARCHITECTURE["vision"] | {"family": "siglip", "image_size": 42, "feature_select": "full"}
LANGUAGES: dict[str, dict[str, Any]] = {
    "phi": {"family": "phi", "query_groups": 4, "partial_rotary_factor": 0.5},
    "gemma": {"family": "gemma", "query_groups": 1, "tied_embeddings": True},
}
SPARSITY: dict[str, dict[str, Any]] = {
    "all": {
        "tune__skip": {"alpha": 0.6, "epsilon": 0.4, "selection": "independent"},
        "tune__compress": {"keep_ratio": 0.5},
        "recompute": "full",
    },
    "visual, packed": {
        "tune__skip": {"tokens": "visual", "alpha": 0.75, "schedule": "constant", "selection": "independent"},
        "tune__data": {"packing": True},
        "recompute": ["core_attn", "layernorm", "mlp"],
    },
}
# Gemma's layers are skipped and recomputed as Llama's are.
CASES = [("phi", "all"), ("phi", "visual, packed"), ("gemma", "all")]
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "tp2": {"tensor": 2},
        "tp2_sp": {"tensor": 2, "sequence_parallel": True},
        "pp2_vp2": {"pipeline": 2, "virtual_pipeline": 2},
        "cp2": {"context": 2},
    },
    4: {
        "tp2_pp2_sp": {"tensor": 2, "pipeline": 2, "sequence_parallel": True},
        "tp4_sp": {"tensor": 4, "sequence_parallel": True},
    },
}
NAMES = [name for layouts in LAYOUTS.values() for name in layouts]


def _recipe(root: Path, family: str, sparsity: str, parallel: dict[str, Any]) -> Recipe:
    return tiny_recipe(
        root,
        parallel=parallel,
        model__architecture={"vision": VISION, "language": ARCHITECTURE["language"] | LANGUAGES[family]},
        tune__trains=["projector", "language", "vision"],
        tune__learning_rate={"vision": 1e-3},
        optimizer={"epsilon": 1e-2},
        **SPARSITY[sparsity],
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("language_families")


@pytest.fixture(scope="module")
def references(root: Path) -> list[Observation]:
    return observe_all([_recipe(root, *case, {}) for case in CASES], "tune", 1, steps=2)


@pytest.fixture(scope="module")
def found(root: Path) -> dict[str, list[Observation]]:
    """By layout, in the order of CASES; all layouts of as many ranks in one start of them."""
    by_layout: dict[str, list[Observation]] = {}
    for ranks, layouts in LAYOUTS.items():
        recipes = [_recipe(root, *case, parallel) for parallel in layouts.values() for case in CASES]
        observed = observe_all(recipes, "tune", ranks, steps=2)
        for number, name in enumerate(layouts):
            by_layout[name] = observed[number * len(CASES) : (number + 1) * len(CASES)]
    return by_layout


def test_layers_are_skipped_and_the_tower_is_trained(references):
    whole, visual = references[:2]
    assert any(whole.skipped) and any(visual.skipped_for_visual)
    tower = [key for key in whole.gradients if key.startswith("vision.")]
    assert tower and any(abs(whole.gradients[key]).max() > 0 for key in tower)


def test_norms_whose_weight_is_added_to_one_start_at_zero(references):
    # Two steps of Adam at a rate of 2e-3 go no further.
    for key, values in references[CASES.index(("gemma", "all"))].weights.items():
        if key.endswith(("layer_norm_weight", "final_layernorm.weight")):
            assert abs(values).max() < 0.01


@pytest.mark.parametrize("case", range(len(CASES)), ids=["-".join(case) for case in CASES])
@pytest.mark.parametrize("layout", NAMES)
def test_layouts_train_as_one_process(references, found, layout, case):
    assert_same(found[layout][case], references[case])
