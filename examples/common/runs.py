"""A recipe of an example: trained through the launcher, exported, its figures read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.questions import read_rows
from common.steps import TOOLS, run_script

from megatron_sts.config import METRICS_FILE, Recipe, checkpoints_of_stage, load_recipe
from megatron_sts.evaluation import evaluate
from megatron_sts.evaluation.progress import shown_progress
from megatron_sts.hf import export_checkpoint, verify_export


def train(config: Path, overrides: Sequence[str], ranks: int, *options: str) -> Recipe:
    """Train what is left of a recipe on ranks of this machine; returns the recipe.

    options: of tools/train.py. A port is chosen that is free, so that two runs on one machine do not meet.
    """
    launcher = ["--standalone", "--nproc-per-node", str(ranks), TOOLS / "train.py"]
    run_script(TOOLS / "launch.py", [*launcher, "--config", config, *options, *overrides])
    return load_recipe(config, overrides)


def probe(config: Path, overrides: Sequence[str], stage: str, output: Path, samples: int) -> None:
    """Show what the layers are worth to the weights that a stage begins from; written as json, with a chart beside."""
    beside = output.with_suffix(".png")
    arguments = ["--config", config, "--stage", stage, "--samples", str(samples), "--output", output, "--plot", beside]
    run_script(TOOLS / "probe.py", [*arguments, *overrides])


def last_checkpoint(recipe: Recipe, stage: str | None = None) -> Path:
    """The newest checkpoint of a stage, of the last one by itself."""
    return checkpoints_of_stage(recipe, stage or recipe.stages[-1].name)[-1]


def metrics(recipe: Recipe) -> list[dict[str, Any]]:
    """Every step's figures, of all stages."""
    return read_rows(recipe.output_dir / METRICS_FILE)


def export(recipe: Recipe, output: Path) -> None:
    """Write the trained model in Hugging Face format, its logits compared with the checkpoint's."""
    checkpoint = last_checkpoint(recipe)
    export_checkpoint(checkpoint, output)
    print(verify_export(output, checkpoint).text())


def ask(exported: Path, questions: Path, images: Path, max_new_tokens: int) -> dict[str, Any]:
    """Accuracy of an export on questions, jsonl as `questions.question_rows` makes it; shows how many are answered."""
    with shown_progress("questions") as progress:
        return dict(evaluate(exported, questions, images, max_new_tokens=max_new_tokens, progress=progress))
