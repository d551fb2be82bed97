"""Shows on a GPU, with the training command itself: FP8 trains as bf16 does, a run repeats and resumes bitwise, memory
does not grow, frozen parts stay, and two ranks on one GPU train as one does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_sts.config import Recipe, resolved_yaml
from megatron_sts.model.precision import Machine
from tests.tiny import ARCHITECTURE, tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
# Every size a multiple of 128, as blockwise asks.
LANGUAGE = {"hidden_size": 256, "ffn_hidden_size": 512, "attention_heads": 4, "query_groups": 4, "layers": 8}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
needs_fp8 = pytest.mark.skipif(
    not Machine.here().transformer_engine or (Machine.here().capability or (0, 0)) < (8, 9),
    reason="there is no Transformer Engine or no FP8 device",
)


def recipe_of(root: Path, name: str, steps: int, **changes: Any) -> Recipe:
    architecture = {**ARCHITECTURE, "language": ARCHITECTURE["language"] | LANGUAGE}
    defaults: dict[str, Any] = {
        "precision": "bf16",
        "output_dir": str(root / name),
        "model__architecture": architecture,
    }
    for stage in ("align", "tune"):
        defaults |= {f"{stage}__steps": steps, f"{stage}__data": {"text_tokens": 20}}
    defaults |= {"tune__learning_rate": {"projector": 1e-3, "language": 3e-4}}
    return tiny_recipe(root, **defaults | changes)


def command(recipe: Recipe, ranks: int = 1, stage: str = "tune") -> list[str]:
    file = recipe.output_dir.with_suffix(".yaml")
    file.write_text(resolved_yaml(recipe))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launch, str(ROOT / "tools" / "train.py"), "--config", str(file), "--stage", stage]


def train(recipe: Recipe, ranks: int = 1, **environment: str) -> list[float]:
    """The losses of the stage tune, trained from fresh weights."""
    recipe = recipe.model_copy(update={"stages": (recipe.stage("tune"),)})
    subprocess.run(command(recipe, ranks), cwd=ROOT, env=os.environ | environment, timeout=400, check=True)
    return losses(recipe)


def losses(recipe: Recipe) -> list[float]:
    lines = (recipe.output_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def inside(check: str, recipe: Recipe, steps: int) -> dict[str, Any]:
    file = recipe.output_dir.with_suffix(".yaml")
    file.write_text(resolved_yaml(recipe))
    arguments = [sys.executable, "-m", "tests.gpu.inside", check, str(file), str(steps)]
    done = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, timeout=400, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def means(values: list[float], width: int = 50) -> list[float]:
    return [sum(values[start : start + width]) / width for start in range(0, len(values), width)]


@needs_fp8
@pytest.mark.parametrize("fp8_recipe", ["tensorwise", "delayed", "blockwise"])
def test_fp8_trains_as_bf16_over_300_steps(tmp_path, fp8_recipe):
    bf16 = train(recipe_of(tmp_path, "bf16", 300))
    fp8 = train(recipe_of(tmp_path, "fp8", 300, precision="fp8", fp8_recipe=fp8_recipe))
    # Single steps of a tiny batch are noisy; the issue is the course of the loss.
    assert means(fp8) == pytest.approx(means(bf16), rel=0.02)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp8", marks=needs_fp8)])
def test_a_run_repeats_bitwise(tmp_path, precision):
    runs = [
        train(recipe_of(tmp_path, name, 20, precision=precision), NVTE_ALLOW_NONDETERMINISTIC_ALGO="0")
        for name in ("one", "two")
    ]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        pytest.param({"precision": "fp8"}, marks=needs_fp8),
        pytest.param({"precision": "fp8", "fp8_recipe": "delayed"}, marks=needs_fp8),
    ],
)
def test_a_stopped_run_goes_on_bitwise(tmp_path, changes):
    changes = changes | {"tune__skip": {"alpha": 0.5}}
    whole = train(recipe_of(tmp_path, "whole", 200, **changes), NVTE_ALLOW_NONDETERMINISTIC_ALGO="0")
    recipe = recipe_of(tmp_path, "stopped", 200, **changes)
    recipe = recipe.model_copy(update={"stages": (recipe.stage("tune"),)})
    environment = os.environ | {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}
    process = subprocess.Popen(command(recipe), cwd=ROOT, env=environment)
    metrics = recipe.output_dir / "metrics.jsonl"
    for _ in range(600):
        if process.poll() is not None or (metrics.is_file() and len(metrics.read_text().splitlines()) >= 20):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
    assert 0 < len(losses(recipe)) < 200
    subprocess.run(command(recipe), cwd=ROOT, env=environment, timeout=400, check=True)
    assert losses(recipe) == whole


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp8", marks=needs_fp8)])
def test_memory_does_not_grow_while_layers_are_skipped(tmp_path, precision):
    held = inside("memory", recipe_of(tmp_path, "memory", 500, precision=precision, tune__skip={"alpha": 0.5}), 500)
    assert held["steps"] == 500 and 0 < held["late"] <= held["early"]


def test_frozen_parts_get_no_gradient_and_do_not_move(tmp_path):
    found = inside("frozen", recipe_of(tmp_path, "frozen", 20), 20)
    assert found["frozen"] > 0 and found["unchanged"] and found["gradients"] == 0


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.device_count() < 2 and "NCCL_MULTI_RANK_GPU_ENABLE" not in os.environ,
    reason="NCCL puts two ranks on one GPU from 2.30 on, with NCCL_MULTI_RANK_GPU_ENABLE=1",
)
@pytest.mark.parametrize("parallel", [{"tensor": 2, "sequence_parallel": True}, {"pipeline": 2}])
def test_two_ranks_train_as_one(tmp_path, parallel):
    one = train(recipe_of(tmp_path, "one", 20))
    two = train(recipe_of(tmp_path, "two", 20, parallel=parallel), ranks=2, MEGATRON_STS_SHARE_GPU="1")
    # bf16: sums of other orders.
    assert two == pytest.approx(one, rel=5e-3)
