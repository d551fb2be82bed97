"""Shows that training works with Transformer Engine's layers, FP8 recipes and optimiser, as far as their Python goes.

Their compiled half is GPU code; here tests/reference_kernels stands in for it, in plain torch on a CPU. What a GPU
computes is for tests/gpu. Each test has a process of its own: megatron-core must find Transformer Engine when it is
imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Path(sys.prefix) / "transformer_engine"
"""Where tests/run.sh puts the Python half of Transformer Engine: in front of nothing else, it cannot be imported."""
pytestmark = [
    pytest.mark.skipif(not ENGINE.is_dir(), reason=f"tests/run.sh could not install Transformer Engine into {ENGINE}"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU has tests/gpu"),
]


def _trained(check: str, directory: Path) -> Any:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ENGINE}"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.reference_kernels.trained", check, str(directory)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_its_layers_and_optimizer_train_as_the_plain_ones_in_every_layout(tmp_path):
    found = _trained("exactly", tmp_path)
    assert any(found["skipped"]) and any(found["skipped_for_visual"])


def test_its_attention_trains_in_bf16_in_every_layout_and_packed(tmp_path):
    found = _trained("in_bf16", tmp_path)
    # Planning leaves out the indices of attention and of text rows: 8 bytes a row of 1,900.
    assert found.pop("kept") < 0.01
    # A number of bf16 has 8 bits; where sums are taken in other orders losses differ by less than one in 2^8.
    assert all(distance < 4e-3 for distance in found.values()), found
    # The same sums in the same order, but for those of the gradient norm.
    assert found["pp2"] < 1e-6 and found["pp2_vp2"] < 1e-6 and found["dp2"] < 1e-6
    assert found["plain"] > 0


def test_fp8_trains_in_layouts_and_spares_frozen_weights(tmp_path):
    for recipe, found in _trained("in_fp8", tmp_path).items():
        # FP8 keeps 3 or 4 bits. Under tensor parallelism each rank scales its own part of a matrix.
        assert 1e-4 < found["from_bf16"] < 0.05, (recipe, found)
        assert found["tp2_sp"] < 0.03, (recipe, found)
        # Delayed scaling goes by what came before, which a pipeline meets in another order.
        assert found["pp2"] < (0.03 if recipe == "delayed" else 1e-6), (recipe, found)
        if recipe != "delayed":
            built, taken = found["in_turn"]
            assert built == taken and built[0] != built[1], (recipe, found)
        # Four products in each of four layers, for each of two micro-batches.
        assert (found["frozen"]["products"], found["trained"]["products"]) == (0, 4 * 4 * 2)
        for stage in ("frozen", "trained"):
            assert found[stage]["kept_bytes"] == found[stage]["planned_bytes"] > 0, (recipe, stage, found[stage])
