"""The small recipe of the GPU checks, and how the training command and a check inside a process are run on it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from megatron_sts.config import Recipe, resolved_yaml
from megatron_sts.parallel.device import has_gpu
from tests.tiny import ARCHITECTURE, tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
# Every size a multiple of 128, as blockwise asks.
LANGUAGE = {"hidden_size": 256, "ffn_hidden_size": 512, "attention_heads": 4, "query_groups": 4, "layers": 8}
REPEATABLE = {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}
"""Transformer Engine's attention then takes kernels that add up in one order alone."""


# Set by tests/conftest.py for ranks that share a CPU; training on a GPU compiles its small fusions.
_FOR_CPU_RANKS = ("TORCH_COMPILE_DISABLE", "OMP_NUM_THREADS")


def child_environment(**changes: str) -> dict[str, str]:
    """The environment of a process that trains: on a GPU without what the suite sets for CPU ranks."""
    left_out = _FOR_CPU_RANKS if has_gpu() else ()
    return {name: value for name, value in os.environ.items() if name not in left_out} | changes


def recipe_of(root: Path, name: str, steps: int, **changes: Any) -> Recipe:
    """A recipe of 8 layers of hidden size 256, in bf16, each stage of `steps` steps."""
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
    """The training command of one stage, on so many ranks of this machine."""
    file = recipe.output_dir.with_suffix(".yaml")
    file.write_text(resolved_yaml(recipe))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launch, str(ROOT / "tools" / "train.py"), "--config", str(file), "--stage", stage]


def train(recipe: Recipe, ranks: int = 1, **environment: str) -> list[float]:
    """The losses of the stage tune, trained from fresh weights."""
    recipe = recipe.model_copy(update={"stages": (recipe.stage("tune"),)})
    subprocess.run(command(recipe, ranks), cwd=ROOT, env=child_environment(**environment), timeout=200, check=True)
    return losses(recipe)


def losses(recipe: Recipe) -> list[float]:
    """The losses that a run has written."""
    lines = (recipe.output_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def inside(check: str, recipe: Recipe, steps: int, timeout: int = 200) -> dict[str, Any]:
    """What a check of tests/gpu/inside.py finds, in a process of its own."""
    file = recipe.output_dir.with_suffix(".yaml")
    file.write_text(resolved_yaml(recipe))
    arguments = [sys.executable, "-m", "tests.gpu.inside", check, str(file), str(steps)]
    done = subprocess.run(
        arguments, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, timeout=timeout, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
