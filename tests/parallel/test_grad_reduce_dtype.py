"""Shows that a step whose gradients are added up in bf16 is that of fp32, up to bf16's rounding."""

import numpy as np
import pytest

from tests.parallel.observe import observe_all
from tests.tiny import tiny_recipe


@pytest.mark.parametrize("distributed", [False, True])
def test_sums_in_bf16_are_those_of_fp32_rounded(tmp_path, distributed):
    changes = {"precision": "bf16", "optimizer": {"distributed": distributed, "kind": "adam"}}
    halved = {"grad_reduce_dtype": "bf16"}
    recipes = [tiny_recipe(tmp_path, parallel=parallel, **changes) for parallel in ({}, halved)]
    whole, found = observe_all(recipes, "tune", 2)
    # Each of a few sums of numbers of either sign is off by up to 2^-9 of itself, and the norm by as much.
    np.testing.assert_allclose(found.grad_norms[0], whole.grad_norms[0], rtol=2**-7)
    np.testing.assert_allclose(found.losses, whole.losses, rtol=2**-7)
    assert found.grad_norms[0] != whole.grad_norms[0]
