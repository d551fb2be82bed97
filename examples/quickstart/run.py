"""The whole way at a size for a laptop: data, tower, tokenizer, language model, then dense and STS side by side.

Everything is trained here; nothing is downloaded. Dense and STS start from the same checkpoint and see the same
samples in the same order. Everything lies in runs/quickstart below --directory. A step whose output is there is not
done again: after an interruption the same command resumes.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import compose_digits
import report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.questions import question_only_accuracy, read_rows
from common.report import arm_figures
from common.runs import ask, export, last_checkpoint, metrics, probe, train
from common.steps import ROOT, announce, make, resume_or_set_aside, run_script

from megatron_sts.command import command
from megatron_sts.config import Recipe
from megatron_sts.hf.parity import largest_logit_difference

HERE = Path(__file__).resolve().parent
# Below the working directory, as the recipes have it.
RUN = Path("runs/quickstart")
DATA = RUN / "data"
QUESTIONS = DATA / "test_questions.jsonl"
PROBE = RUN / "probe.json"
RANKS = 2
COMPARED_LOGITS = 8
# Held-out samples that the layers are measured on.
PROBED = 32

TINY_DATA = ["--train", "64", "--test", "8"]
TINY_TOWER = ["--steps", "10"]
TINY_PROBED = 4
TINY_RUNS = {
    "start": ["stages.pretrain.steps=4", "stages.pretrain.batch.global=8", "stages.pretrain.batch.micro=4"],
    "dense": ["stages.align.steps=3", "stages.tune.steps=6"],
    "sts": ["stages.align.steps=3", "stages.tune.steps=6"],
}


@command
def main() -> int:
    """Run what is not done yet and print the table."""
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
    resume_or_set_aside(RUN, settings(tiny))

    composed = TINY_DATA if tiny else []
    make(
        "1/7 images of handwritten digits, captions and questions",
        DATA,
        lambda at: compose_digits.main(["--output", str(at), *composed]),
    )
    make(
        "2/7 a tokenizer (no pretrained one is used, so it is trained here)",
        RUN / "tokenizer",
        lambda at: run_script(HERE / "train_tokenizer.py", ["--data", DATA, "--output", at]),
    )
    make(
        "2/7 a small vision tower, for the same reason",
        RUN / "tower",
        lambda at: run_script(HERE / "train_tower.py", ["--data", DATA, "--output", at, *(TINY_TOWER if tiny else [])]),
    )
    overrides: dict[str, list[str]] = TINY_RUNS if tiny else {name: [] for name in TINY_RUNS}
    announce("3/7 the language model, pretrained on the training text alone")
    start = train(HERE / "start.yaml", overrides["start"], RANKS)
    init = [f"model.init={last_checkpoint(start)}"]
    announce("4/7 alignment and instruction tuning, dense")
    dense = train(HERE / "dense.yaml", [*overrides["dense"], *init], RANKS)

    announce("5/7 the Sparse Training Scheme: alignment with half of the visual tokens")
    share_index(dense, RUN / "sts")
    recipe, sparse = HERE / "sts.yaml", [*overrides["sts"], *init]
    train(recipe, sparse, RANKS, "--stage", "align")
    make(
        "6/7 probe: what each layer is worth to the aligned model, and to its visual tokens",
        PROBE,
        lambda at: probe(recipe, sparse, "tune", at, TINY_PROBED if tiny else PROBED),
        is_atomic=True,
    )
    announce("6/7 the Sparse Training Scheme: tuning without the MLPs of visual tokens that are worth least")
    sts = train(recipe, [*sparse, f"stages.tune.skip.rises={PROBE}"], RANKS)

    found: dict[str, Any] = {name: compare(arm) for name, arm in (("dense", dense), ("sts", sts))}
    found |= {
        "question_only_accuracy": question_only_accuracy(
            json.loads((DATA / "tune.json").read_text()), read_rows(QUESTIONS)
        ),
        "export_max_logit_difference": compare_logits(sts),
        "layout": dense.parallel.model_dump() | {"ranks": RANKS},
        "questions": str(QUESTIONS),
        "total_seconds": time.perf_counter() - began,
    }
    report.write(found, RUN)
    print(f"\n{report.table(found)}\n\n{report.what_is_next(found, RUN, PROBE)}")
    return 0


def settings(tiny: bool) -> str:
    """What the files of a run depend on: its size, and the example's own files."""
    digest = hashlib.sha256()
    for file in sorted([*HERE.glob("*.*"), *(HERE.parent / "common").glob("*.py")]):
        digest.update(file.read_bytes())
    return f"{'tiny' if tiny else 'whole'} {digest.hexdigest()}\n"


def share_index(trained: Recipe, output: Path) -> None:
    """Give a run the lengths of the records that another has measured on the same data."""
    shutil.copytree(trained.output_dir / "index", output / "index", dirs_exist_ok=True)


def compare(recipe: Recipe) -> dict[str, Any]:
    """A finished arm's figures: of its export and of its training."""
    exported, result = recipe.output_dir / "export", recipe.output_dir / "evaluation.json"

    def write_answers(at: Path) -> None:
        at.write_text(json.dumps(ask(exported, QUESTIONS, DATA, max_new_tokens=12), indent=1) + "\n")

    make(f"7/7 export {exported}", exported, lambda at: export(recipe, at), is_atomic=True)
    make(f"7/7 evaluate {exported}", result, write_answers)
    lines = metrics(recipe)
    return arm_figures(json.loads(result.read_text()), lines) | {
        "export": str(exported),
        "layers": recipe.architecture.language.layers,
        "skipped": [line["layers_skipped_for_visual"] for line in lines if line["stage"] == "tune"],
    }


def compare_logits(recipe: Recipe) -> float:
    """The largest difference between the logits of the trained and of the exported model on test questions."""
    questions = [(DATA / row["image"], row["text"]) for row in read_rows(QUESTIONS)[:COMPARED_LOGITS]]
    return largest_logit_difference(last_checkpoint(recipe), recipe.output_dir / "export", questions)


if __name__ == "__main__":
    sys.exit(main())
