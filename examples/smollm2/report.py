"""The comparison: report.json, report.png and the table on the terminal."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

NAMES = {"dense": "dense", "sts": "STS"}
COLORS = {"dense": "#4c72b0", "sts": "#dd8452"}
WINDOW = 10


def figures(evaluation: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """An arm's figures. evaluation: of the export, with `image`; lines: of metrics.jsonl."""
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    of_stage = {stage: [line for line in lines if line["stage"] == stage] for stage in stages}
    return {
        "accuracy": evaluation["accuracy"],
        "interval_95": evaluation["interval_95"],
        "accuracy_by_category": {name: part["accuracy"] for name, part in evaluation["by_category"].items()},
        "image": evaluation["image"],
        "steps": {stage: len(part) for stage, part in of_stage.items()},
        "seconds": {stage: sum(line["step_time_s"] for line in part) for stage, part in of_stage.items()},
        "flops_executed": {stage: sum(line["flops_executed"] for line in part) for stage, part in of_stage.items()},
        "flops_dense": {stage: sum(line["flops_dense"] for line in part) for stage, part in of_stage.items()},
        "loss": {stage: [line["loss"] for line in part] for stage, part in of_stage.items()},
    }


def table(found: dict[str, Any]) -> str:
    """The table for the terminal."""
    arms = [arm for arm in NAMES if arm in found]
    rows = [("exact answers", [f"{found[arm]['accuracy']:.1%}" for arm in arms])]
    rows.append(("  95% interval", ["{:.1%}-{:.1%}".format(*found[arm]["interval_95"]) for arm in arms]))
    rows += [
        (f"  {category}", [f"{found[arm]['accuracy_by_category'][category]:.1%}" for arm in arms])
        for category in sorted(found[arms[0]]["accuracy_by_category"])
    ]
    rows.append(("  from the question alone", [f"{found['question_only_accuracy']:.1%}"]))
    rows.append(("loss of test answers, nats a token", [f"{found[arm]['image']['loss']:.3f}" for arm in arms]))
    rows.append(("  with another image", [f"{found[arm]['image']['loss_with_another_image']:.3f}" for arm in arms]))
    rows.append(("  without any", [f"{found[arm]['image']['loss_without_image']:.3f}" for arm in arms]))
    rows.append(("  what the image is worth", [f"{found[arm]['image']['worth']:.3f}" for arm in arms]))
    for stage in found[arms[0]]["steps"]:
        rows.append((f"{stage}: steps", [str(found[arm]["steps"][stage]) for arm in arms]))
        rows.append(("  seconds", [f"{found[arm]['seconds'][stage]:.0f}" for arm in arms]))
        saved = [1 - found[arm]["flops_executed"][stage] / found[arm]["flops_dense"][stage] for arm in arms]
        rows.append(("  FLOPs saved", [f"{share:.1%}" for share in saved]))
    width = max(len(name) for name, _ in rows)
    lines = [f"{'':{width}}" + "".join(f"{NAMES[arm]:>16}" for arm in arms)]
    lines.append("-" * len(lines[0]))
    return "\n".join([*lines, *(f"{name:{width}}" + "".join(f"{value:>16}" for value in row) for name, row in rows)])


def write(found: dict[str, Any], directory: Path) -> None:
    """Write report.json and report.png."""
    (directory / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    arms = [arm for arm in NAMES if arm in found]
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    for axis, stage in zip(axes, found[arms[0]]["loss"], strict=False):
        for arm in arms:
            losses = found[arm]["loss"][stage]
            window = min(len(losses), WINDOW)
            smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
            axis.plot(range(window, len(losses) + 1), smooth, color=COLORS[arm], label=NAMES[arm])
        axis.set(xlabel="step", ylabel=f"loss, mean of {WINDOW} steps", title=stage)
        axis.legend()
    categories = sorted(found[arms[0]]["accuracy_by_category"])
    places = np.arange(len(categories) + 1)
    for number, arm in enumerate(arms):
        values = [found[arm]["accuracy"], *(found[arm]["accuracy_by_category"][name] for name in categories)]
        axes[2].bar(places + 0.4 * number, values, width=0.4, color=COLORS[arm], label=NAMES[arm])
    axes[2].axhline(found["question_only_accuracy"], color="gray", linestyle="--", label="question alone, all")
    axes[2].set_xticks(places + 0.2, ["all", *categories], rotation=30)
    axes[2].set(ylabel="exact answers", ylim=(0, 1), title="Test questions")
    axes[2].legend()
    figure.savefig(directory / "report.png", dpi=110)
    plt.close(figure)
