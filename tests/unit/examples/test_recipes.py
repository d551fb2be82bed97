"""Shows that the dense and the sparse recipe of every example are the same run but for the sparsity."""

from pathlib import Path

import pytest

from megatron_sts.config import difference, load_recipe

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
BOTH = sorted(path.parent for path in EXAMPLES.glob("*/sts.yaml"))


@pytest.mark.parametrize("example", BOTH, ids=lambda path: path.name)
def test_dense_and_sts_differ_in_sparsity_alone(example):
    dense, sts = (load_recipe(example / f"{name}.yaml", check_files=False) for name in ("dense", "sts"))
    changed = difference(dense.resolved(), sts.resolved())
    assert changed and "output_dir" in changed
    assert all(field == "output_dir" or field.split(".")[-1] in ("skip", "compress") for field in changed), changed
    assert all(not stage.skip and stage.compress is None for stage in dense.stages)


def test_every_example_with_a_sparse_recipe_has_a_dense_one():
    assert len(BOTH) >= 2
    assert all((example / "dense.yaml").is_file() for example in BOTH)
