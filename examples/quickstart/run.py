"""The whole way at a size for a laptop: data, tower, tokenizer, language model, then dense and STS side by side.

Everything is trained here; nothing is downloaded. Dense and STS start from the same checkpoint and see the same
samples in the same order.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import report

from megatron_sts.config import METRICS_FILE, Recipe, checkpoints_of_stage, load_recipe
from megatron_sts.evaluation import evaluate
from megatron_sts.hf import export_checkpoint, verify_export
from megatron_sts.hf.parity import largest_logit_difference

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(__file__).resolve().parent
# Below the working directory, as the recipes have it.
RUN = Path("runs/quickstart")
RANKS = 2
COMPARED_LOGITS = 8

TINY_DATA = ["--tiny"]
TINY_TOWER = ["--steps", "10"]
TINY_RUNS = {
    "start": ["stages.pretrain.steps=4", "stages.pretrain.batch.global=8", "stages.pretrain.batch.micro=4"],
    "dense": ["stages.align.steps=3", "stages.tune.steps=6"],
    "sts": ["stages.align.steps=3", "stages.tune.steps=6"],
}


def main() -> int:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tiny", action="store_true", help="a few steps of everything: shows that it runs, learns nothing"
    )
    parser.add_argument(
        "--directory", type=Path, default=ROOT, help="where to make runs/quickstart (default: the repository)"
    )
    options = parser.parse_args()
    tiny = options.tiny
    os.chdir(options.directory)
    began = time.perf_counter()
    shutil.rmtree(RUN, ignore_errors=True)
    RUN.mkdir(parents=True)

    say("1/6 pictures of handwritten digits, captions and questions")
    python("compose_digits.py", "--output", f"{RUN}/data", *(TINY_DATA if tiny else ()))
    say("2/6 stage 0: a small vision tower and a tokenizer (no pretrained ones are used, so they are trained here)")
    python("train_tokenizer.py", "--data", f"{RUN}/data", "--output", f"{RUN}/tokenizer")
    python("train_tower.py", "--data", f"{RUN}/data", "--output", f"{RUN}/tower", *(TINY_TOWER if tiny else ()))
    say("3/6 the language model, pretrained on the training text alone")
    overrides: dict[str, list[str]] = TINY_RUNS if tiny else {name: [] for name in TINY_RUNS}
    start = train("start", overrides["start"])
    init = [f"model.init={last_checkpoint(start)}"]
    say("4/6 alignment and instruction tuning, dense")
    dense = train("dense", [*overrides["dense"], *init])
    say("5/6 the same with the Sparse Training Scheme")
    share_index(dense, RUN / "sts")
    sts = train("sts", [*overrides["sts"], *init])
    say("6/6 export to Hugging Face format, and evaluation of the exported models")
    result = report.assemble(
        runs={name: figures(recipe) for name, recipe in (("dense", dense), ("sts", sts))},
        data=RUN / "data",
        layout=dense.parallel.model_dump() | {"ranks": RANKS},
        export_max_logit_difference=compare_logits(sts),
        total_seconds=time.perf_counter() - began,
    )
    report.write(result, RUN)
    print(report.table(result))
    print(f"\nwhole run: {result['total_seconds']:.0f} s. Written: {RUN}/report.json, {RUN}/report.png")
    return 0


def say(text: str) -> None:
    """Announce a part of the run."""
    print(f"\n== {text}", flush=True)


def python(script: str, *arguments: str) -> None:
    """Run one of the quickstart's own scripts."""
    subprocess.run([sys.executable, "-W", "ignore", str(RECIPES / script), *arguments], check=True)


def train(name: str, overrides: list[str], output: Path | None = None) -> Recipe:
    """Train a recipe of this folder on all ranks; returns it as it was run."""
    if output is not None:
        overrides = [*overrides, f"output_dir={output}"]
    recipe = load_recipe(RECIPES / f"{name}.yaml", overrides)
    # A free port, so that two runs on one machine do not meet.
    command = [sys.executable, str(ROOT / "tools" / "launch.py"), "--standalone", "--nproc-per-node", str(RANKS)]
    command += [str(ROOT / "tools" / "train.py"), "--config", str(RECIPES / f"{name}.yaml"), *overrides]
    # One thread a rank: with more, two ranks would fight for two cores. Compiling takes longer than it saves here.
    environment = {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, check=False, env=os.environ | environment)
    if done.returncode != 0:
        # The ranks have said why.
        sys.exit(done.returncode)
    return recipe


def share_index(trained: Recipe, output: Path) -> None:
    """Give a run the lengths of the records that another has measured on the same data."""
    shutil.copytree(trained.output_dir / "index", output / "index")


def last_checkpoint(recipe: Recipe) -> Path:
    """The checkpoint at the end of a finished run."""
    return checkpoints_of_stage(recipe, recipe.stages[-1].name)[-1]


def metrics(recipe: Recipe) -> list[dict[str, Any]]:
    """Every step's figures."""
    return [json.loads(line) for line in (recipe.output_dir / METRICS_FILE).read_text().splitlines()]


def figures(recipe: Recipe) -> dict[str, Any]:
    """A finished run's export, its accuracy and what it cost."""
    export = recipe.output_dir / "export"
    export_checkpoint(last_checkpoint(recipe), export)
    verify_export(export)
    print(f"evaluating {export}", flush=True)
    return {
        "export": export,
        "evaluation": evaluate(export, RUN / "data" / "test_questions.jsonl", RUN / "data", max_new_tokens=12),
        "metrics": metrics(recipe),
    }


def compare_logits(recipe: Recipe) -> float:
    """The largest difference between the logits of the trained and of the exported model on test questions."""
    lines = (RUN / "data" / "test_questions.jsonl").read_text().splitlines()[:COMPARED_LOGITS]
    questions = [(RUN / "data" / line["image"], line["text"]) for line in map(json.loads, lines)]
    return largest_logit_difference(last_checkpoint(recipe), recipe.output_dir / "export", questions)


if __name__ == "__main__":
    sys.exit(main())
