"""Trains, exports and evaluates one arm with one seed, in a process of its own; writes result.json.

What arms share, the checkpoint that they begin from and what each layer is worth to it, is made by the first that asks.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from models import EXAMPLES, MODELS, Arm, Model, arm_recipe, arms_of, probe_recipe, root, start_recipe
from seven_b import saved_of_7b

from megatron_sts.config import Recipe, load_recipe, step_of
from megatron_sts.hf import export_checkpoint
from megatron_sts.train.stages import train

sys.path += [str(EXAMPLES), str(EXAMPLES / "smollm2")]
from common.questions import read_rows
from common.runs import ask, last_checkpoint, metrics, probe
from image_worth import image_worth

# Steps whose mean loss is told.
WINDOW = 10
# Samples that what each layer is worth is measured on.
PROBED = 16


def main() -> int:
    """Do what is missing of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--size", required=True)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    options = parser.parse_intermixed_args()
    model, size, overrides = MODELS[options.model], options.size, options.overrides
    arm = arms_of(model.name)[options.arm]
    start = begun(model, size, arm, overrides)
    rises = measured(model, size, start, overrides) if arm.asks_for_rises else None
    recipe = load_recipe(write(arm_recipe(model, size, arm, options.seed, start, rises)), overrides)
    # The lengths of the records, which all arms share.
    shared = root(model, size) / "index"
    if shared.is_dir():
        shutil.copytree(shared, recipe.output_dir / "index", dirs_exist_ok=True)
    train(recipe)
    shutil.copytree(recipe.output_dir / "index", shared, dirs_exist_ok=True)
    result = figures(model, size, arm, options.seed, recipe)
    (recipe.output_dir / "result.json").write_text(json.dumps(result) + "\n")
    # Gigabytes that nothing asks for any more.
    for made in ("checkpoints", "export"):
        shutil.rmtree(recipe.output_dir / made)
    return 0


def write(values: dict[str, Any]) -> Path:
    """A recipe, written where its run lies."""
    file = Path(values["output_dir"]) / "study.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


def begun(model: Model, size: str, arm: Arm, overrides: Sequence[str]) -> Path:
    """The checkpoint that an arm begins from, trained unless it is there."""
    recipe = load_recipe(write(start_recipe(model, size, arm)), overrides)
    stage = recipe.stages[-1]
    found = sorted((recipe.output_dir / "checkpoints").glob(f"{stage.name}-*"))
    if not found or step_of(found[-1]) != stage.steps:
        train(recipe)
    return last_checkpoint(recipe)


def measured(model: Model, size: str, start: Path, overrides: Sequence[str]) -> Path:
    """What each layer is worth to the weights that arms begin from, the json of tools/probe.py."""
    file = root(model, size) / "rises.json"
    if not file.is_file():
        beside = file.with_name("measured.json")
        probe(write(probe_recipe(model, size, start)), overrides, model.begins_after, beside, PROBED)
        beside.rename(file)
    return file


def figures(model: Model, size: str, arm: Arm, seed: int, recipe: Recipe) -> dict[str, Any]:
    """The line of results of a trained arm; exports and evaluates it."""
    exported, data = recipe.output_dir / "export", model.made / "data"
    questions = data / "test_questions.jsonl"
    if not exported.is_dir():
        export_checkpoint(last_checkpoint(recipe), exported)
    began = time.perf_counter()
    evaluation = ask(exported, questions, data, model.max_new_tokens)
    worth = image_worth(exported, read_rows(questions)[: model.worth_questions], data)
    lines = metrics(recipe)
    losses = [line["loss"] for line in lines]
    return {
        "model": model.name,
        "size": size,
        "arm": arm.name,
        "seed": seed,
        "settings": {"align": arm.align, "tune": arm.tune, "steps": len(lines)},
        "accuracy": evaluation["accuracy"],
        "interval_95": evaluation["interval_95"],
        "questions": evaluation["questions"],
        "accuracy_by_category": {name: part["accuracy"] for name, part in evaluation["by_category"].items()},
        "image": {name: round(value, 4) for name, value in worth.items()},
        "loss_by_10_steps": [
            round(statistics.mean(losses[at : at + WINDOW]), 3) for at in range(0, len(losses), WINDOW)
        ],
        "flops_executed": sum(line["flops_executed"] for line in lines),
        "flops_dense": sum(line["flops_dense"] for line in lines),
        "saved_of_7b": round(saved_of_7b(arm, model.layers), 4),
        "step_seconds": round(statistics.median(line["step_time_s"] for line in lines), 3),
        "evaluation_seconds": round(time.perf_counter() - began, 1),
        "load": round(os.getloadavg()[2], 1),
    }


if __name__ == "__main__":
    sys.exit(main())
