"""What an example reports of its arms: figures, the table on the terminal, and pieces of the picture."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NAMES = {"dense": "dense", "sts": "STS"}
COLORS = {"dense": "#4c72b0", "sts": "#dd8452", "question only": "#b0b0b0"}
QUESTION_ONLY = "question only"

Row = tuple[str, Sequence[str]]


def arm_figures(evaluation: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An arm's figures as plain values. evaluation: of its export; lines: of metrics.jsonl."""
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    of_stage = {stage: [line for line in lines if line["stage"] == stage] for stage in stages}

    def by_stage(key: str) -> dict[str, Any]:
        return {stage: sum(line[key] for line in part) for stage, part in of_stage.items()}

    executed, dense = by_stage("flops_executed"), by_stage("flops_dense")
    return {
        "accuracy": evaluation["accuracy"],
        "interval_95": evaluation["interval_95"],
        "accuracy_by_category": {name: part["accuracy"] for name, part in evaluation["by_category"].items()},
        "steps": {stage: len(part) for stage, part in of_stage.items()},
        "train_seconds": by_stage("step_time_s"),
        "flops_executed": sum(executed.values()),
        "flops_dense": sum(dense.values()),
        "flops_saved": {stage: 1 - executed[stage] / dense[stage] for stage in stages},
        "visual_tokens_kept": sum(by_stage("visual_tokens_kept").values()),
        "visual_tokens_total": sum(by_stage("visual_tokens_total").values()),
        "loss": {stage: [line["loss"] for line in part] for stage, part in of_stage.items()},
    }


def write_report(found: Mapping[str, Any], directory: Path, draw: Callable[[Sequence[Axes]], None]) -> None:
    """Write report.json, and report.png, whose three parts side by side `draw` fills."""
    (directory / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    draw(figure.subplots(1, 3))
    figure.savefig(directory / "report.png", dpi=110)


def arms_of(found: Mapping[str, Any]) -> list[str]:
    """The arms that were run, dense first."""
    return [arm for arm in NAMES if arm in found]


def accuracy_rows(found: Mapping[str, Any]) -> list[Row]:
    """Exact answers: without looking, and of each arm. found: `question_only_accuracy`, and figures by arm."""
    arms, unseen = arms_of(found), found["question_only_accuracy"]
    rows: list[Row] = [("exact answers", [percent(unseen["overall"]), *(percent(found[a]["accuracy"]) for a in arms)])]
    rows.append(("  95% interval", ["", *("-".join(map(percent, found[arm]["interval_95"])) for arm in arms)]))
    for category in sorted(found[arms[0]]["accuracy_by_category"]):
        shares = [unseen.get(category, 0.0), *(found[arm]["accuracy_by_category"][category] for arm in arms)]
        rows.append((f"  {category}", [percent(share) for share in shares]))
    return rows


def training_rows(found: Mapping[str, Any]) -> list[Row]:
    """Of each stage what it took and what was saved."""
    arms = arms_of(found)
    rows: list[Row] = []
    for stage in found[arms[0]]["steps"]:
        rows.append((f"{stage}: steps", ["", *(str(found[arm]["steps"][stage]) for arm in arms)]))
        rows.append(("  seconds", ["", *(f"{found[arm]['train_seconds'][stage]:.0f}" for arm in arms)]))
        rows.append(("  FLOPs saved", ["", *(percent(found[arm]["flops_saved"][stage]) for arm in arms)]))
    return rows


def closing_line(found: Mapping[str, Any], stage: str) -> str:
    """What STS kept of the accuracy, and what its time was to dense's in a stage."""
    dense, sparse = found["dense"], found["sts"]
    kept = sparse["accuracy"] / dense["accuracy"] if dense["accuracy"] else 0.0
    time = sparse["train_seconds"][stage] / dense["train_seconds"][stage]
    return f"STS kept {percent(kept)} of dense's accuracy; {stage} took {time:.2f} of dense's time"


def text_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A header, a rule, and rows of a name and right-aligned cells."""
    cells = [("", columns), *rows]
    first = max(len(name) for name, _ in cells)
    widths = [max(len(values[column]) for _, values in cells) for column in range(len(columns))]
    lines = [
        "  ".join([name.ljust(first), *(value.rjust(width) for value, width in zip(values, widths, strict=True))])
        for name, values in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def percent(share: float) -> str:
    """`12.3%`."""
    return f"{share:.1%}"


def plot_losses(axes: Axes, found: Mapping[str, Any], stage: str, window: int) -> None:
    """Draw the moving mean of a stage's loss, one line an arm."""
    for arm in arms_of(found):
        losses = found[arm]["loss"][stage]
        width = min(len(losses), window)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(range(width, len(losses) + 1), smooth, color=COLORS[arm], label=NAMES[arm])
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps", title=f"Training loss, {stage}")
    axes.legend()


def plot_accuracy(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draw bars of exact answers by category: without looking, and of each arm with its 95% interval."""
    arms, unseen = arms_of(found), found["question_only_accuracy"]
    categories = sorted(found[arms[0]]["accuracy_by_category"])
    bars = {QUESTION_ONLY: [unseen.get(name, 0.0) for name in ("overall", *categories)]}
    for arm in arms:
        bars[arm] = [found[arm]["accuracy"], *(found[arm]["accuracy_by_category"][name] for name in categories)]
    places, width = np.arange(1 + len(categories)), 0.8 / len(bars)
    for number, (arm, heights) in enumerate(bars.items()):
        shift = (number - (len(bars) - 1) / 2) * width
        axes.bar(places + shift, heights, width, color=COLORS[arm], label=NAMES.get(arm, arm))
        if arm in arms:
            axes.plot([shift, shift], found[arm]["interval_95"], color="black", linewidth=1)
    axes.set(ylim=(0, 1), title="Exact answers to test questions (line: 95% interval)")
    axes.set_xticks(places, ["all", *categories], rotation=20)
    axes.legend(fontsize="small", ncols=len(bars), loc="upper center", bbox_to_anchor=(0.5, -0.15))
