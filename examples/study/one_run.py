"""Trains, exports and evaluates one arm with one seed, in a process of its own; writes result.json."""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from models import EXAMPLES, MODELS, Arm, Model, arm_recipe, arms_of, root, start_recipe
from seven_b import saved_of_7b

from megatron_sts.config import METRICS_FILE, Recipe, checkpoints_of_stage, load_recipe
from megatron_sts.evaluation import evaluate
from megatron_sts.hf import export_checkpoint
from megatron_sts.train.stages import train

sys.path.append(str(EXAMPLES / "smollm2"))
from image_worth import image_worth, read_questions

# Steps whose mean loss is told as the last.
LAST = 10


def main() -> int:
    """Do what is missing of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument("--size", required=True)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--start-only", action="store_true", help="train the alignment that the arm begins from")
    options = parser.parse_args()
    model, arm = MODELS[options.model], arms_of(options.model)[options.arm]
    started = written(start_recipe(model, options.size, arm))
    if options.start_only:
        train(started)
        return 0
    start = checkpoints_of_stage(started, "align")[-1]
    rises = root(model, options.size) / "rises.json"
    recipe = written(arm_recipe(model, options.size, arm, options.seed, start, rises))
    shared = root(model, options.size) / "index"
    if shared.is_dir() and not (recipe.output_dir / "index").is_dir():
        shutil.copytree(shared, recipe.output_dir / "index")
    train(recipe)
    if not shared.is_dir():
        shutil.copytree(recipe.output_dir / "index", shared)
    result = figures(model, options.size, arm, options.seed, recipe)
    (recipe.output_dir / "result.json").write_text(json.dumps(result) + "\n")
    # Gigabytes that nothing asks for any more.
    for made in ("checkpoints", "export"):
        shutil.rmtree(recipe.output_dir / made)
    return 0


def written(values: dict[str, Any]) -> Recipe:
    """The recipe, written where its run lies, and read again."""
    place = Path(values["output_dir"])
    place.mkdir(parents=True, exist_ok=True)
    file = place / "study.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_recipe(file)


def figures(model: Model, size: str, arm: Arm, seed: int, recipe: Recipe) -> dict[str, Any]:
    """The line of results of a trained arm; exports and evaluates it."""
    export, questions, data = (
        recipe.output_dir / "export",
        model.made / "data" / "test_questions.jsonl",
        model.made / "data",
    )
    if not export.is_dir():
        export_checkpoint(checkpoints_of_stage(recipe, "tune")[-1], export)
    began = time.perf_counter()
    evaluation = evaluate(export, questions, data, max_new_tokens=model.max_new_tokens)
    worth = image_worth(export, read_questions(questions)[: model.worth_questions], data)
    lines = [json.loads(line) for line in (recipe.output_dir / METRICS_FILE).read_text().splitlines()]
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
        "loss_by_10_steps": [round(statistics.mean(losses[at : at + LAST]), 3) for at in range(0, len(losses), LAST)],
        "flops_executed": sum(line["flops_executed"] for line in lines),
        "flops_dense": sum(line["flops_dense"] for line in lines),
        "saved_of_7b": round(saved_of_7b(arm, model.layers), 4),
        "step_seconds": round(statistics.median(line["step_time_s"] for line in lines), 3),
        "evaluation_seconds": round(time.perf_counter() - began, 1),
        "load": round(os.getloadavg()[2], 1),
    }


if __name__ == "__main__":
    sys.exit(main())
