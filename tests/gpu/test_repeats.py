"""Shows on a GPU that a run repeats bitwise, and that a stopped run goes on bitwise."""

import os
import signal
import subprocess
import time

import pytest

from tests.gpu.conditions import PRECISIONS, on_gpu
from tests.gpu.recipes import REPEATABLE, ROOT, command, losses, recipe_of, train

pytestmark = on_gpu


@pytest.mark.parametrize("changes", PRECISIONS[:3])
def test_a_run_repeats_and_a_stopped_run_goes_on_bitwise(tmp_path, changes):
    changes = changes | {"tune__skip": {"alpha": 0.5}}
    whole, again = (train(recipe_of(tmp_path, name, 200, **changes), **REPEATABLE) for name in ("whole", "again"))
    assert again == whole

    recipe = recipe_of(tmp_path, "stopped", 200, **changes)
    recipe = recipe.model_copy(update={"stages": (recipe.stage("tune"),)})
    process = subprocess.Popen(command(recipe), cwd=ROOT, env=os.environ | REPEATABLE)
    metrics = recipe.output_dir / "metrics.jsonl"
    try:
        for _ in range(1000):
            if process.poll() is not None or (metrics.is_file() and len(metrics.read_text().splitlines()) >= 20):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=100)
    finally:
        process.kill()
    assert 0 < len(losses(recipe)) < 200
    assert train(recipe, **REPEATABLE) == whole
