"""The quickstart's report: report.json, report.png and the table on the terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.report import (
    NAMES,
    QUESTION_ONLY,
    accuracy_rows,
    arms_of,
    closing_line,
    plot_accuracy,
    plot_losses,
    text_table,
    training_rows,
    write_report,
)


def write(found: dict[str, Any], directory: Path) -> None:
    """Write report.json and report.png."""

    def draw(axes: Sequence[Axes]) -> None:
        plot_losses(axes[0], found, "tune", window=20)
        _plot_skipping(axes[1], found)
        plot_accuracy(axes[2], found)

    write_report(found, directory, draw)


def _plot_skipping(axes: Axes, found: dict[str, Any]) -> None:
    skipped = found["sts"]["skipped"]
    layers = found["sts"]["layers"]
    ran = np.ones((layers, len(skipped)))
    for step, numbers in enumerate(skipped):
        ran[numbers, step] = 0
    blocks = min(40, len(skipped))
    share = np.stack([1 - part.mean(axis=1) for part in np.array_split(ran, blocks, axis=1)], axis=1)
    extent = (0, len(skipped), -0.5, layers - 0.5)
    image = axes.imshow(share, aspect="auto", origin="lower", cmap="Oranges", vmin=0, vmax=1, extent=extent)
    axes.figure.colorbar(image, ax=axes, label="share of steps that left the MLP out")
    axes.set(
        xlabel="tuning step", ylabel="layer (0 is nearest the input)", title="Layers whose MLP visual tokens passed by"
    )


def table(found: dict[str, Any]) -> str:
    """The table for the terminal, and the line below it."""
    columns = [QUESTION_ONLY, *(NAMES[arm] for arm in arms_of(found))]
    exported = f"exported against trained model: logits differ by at most {found['export_max_logit_difference']:.1e}"
    rows = [*accuracy_rows(found), *training_rows(found)]
    return f"{text_table(columns, rows)}\n\n{closing_line(found, 'tune')}; {exported}"


def what_is_next(found: dict[str, Any], run: Path, probe: Path) -> str:
    """Where everything is, and commands to run after it."""
    recipe, exported = "examples/quickstart/sts.yaml", found["sts"]["export"]
    commands = {
        "ask the model": f"python tools/generate.py --model {exported} --image IMAGE.png --prompt 'QUESTION'",
        "see the plan of a recipe": f"python tools/plan.py --config {recipe}",
        "probe another budget": f"python tools/probe.py --config {recipe} --budget 0.5",
        "your own data and weights": "docs/training.md; two pretrained models: bash examples/smollm2/run.sh --short",
    }
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command}" for name, command in commands.items()]
    written = f"{run}/report.json, {run}/report.png, {probe.with_suffix('.png')}"
    return "\n".join(
        [f"whole run: {found['total_seconds']:.0f} s. Written: {written}", "next (source .venv/bin/activate):", *lines]
    )
