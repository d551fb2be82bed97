"""Shows in minutes that training works on this GPU at all: a few steps in each precision, with and without skipped
layers, saved and gone on with bitwise. Each precision has a process of its own, so that none spoils another."""

import math

import pytest

from tests.gpu.conditions import PRECISIONS, on_gpu
from tests.gpu.recipes import inside, recipe_of

pytestmark = on_gpu


@pytest.mark.parametrize("changes", [*PRECISIONS, pytest.param({"precision": "fp32"}, id="fp32")])
def test_steps_skips_and_a_resume(tmp_path, changes, record_property):
    found = inside("quick", recipe_of(tmp_path, "quick", 8, **changes), 4, timeout=100)
    for name, value in found.items():
        record_property(name, value)
    print(found["runs_on"])
    assert all(map(math.isfinite, [*found["first"], *found["losses"]]))
    # The same samples, four steps later.
    assert found["losses"][0] < found["first"][0]
    assert found["moved"] and found["still"]
    assert found["again"] == pytest.approx(found["losses"], rel=1e-3)
