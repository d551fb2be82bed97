"""The quickstart's report: report.json, report.png and the table on the terminal."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from compose_digits import question_only_accuracy
from matplotlib.axes import Axes

NAMES = {"dense": "dense", "sts": "STS"}
COLOURS = {"dense": "#4c72b0", "sts": "#dd8452", "question only": "#b0b0b0"}


def assemble(
    runs: dict[str, dict[str, Any]],
    data: Path,
    layout: dict[str, Any],
    export_max_logit_difference: float,
    total_seconds: float,
) -> dict[str, Any]:
    """The report as plain values. runs: by name, each with export, evaluation and metrics."""
    questions = data / "test_questions.jsonl"
    baseline = question_only_accuracy(
        json.loads((data / "tune.json").read_text()), [json.loads(line) for line in questions.read_text().splitlines()]
    )
    return {
        **{name: _run(run) for name, run in runs.items()},
        "question_only_accuracy": baseline["overall"],
        "question_only_accuracy_by_category": {name: value for name, value in baseline.items() if name != "overall"},
        "export_max_logit_difference": export_max_logit_difference,
        "layout": layout,
        "total_seconds": total_seconds,
        "questions": str(questions),
        **{f"{name}_export": str(run["export"]) for name, run in runs.items()},
    }


def _run(run: dict[str, Any]) -> dict[str, Any]:
    lines, evaluation = run["metrics"], run["evaluation"]
    stages = list(dict.fromkeys(line["stage"] for line in lines))

    def total(key: str) -> float:
        return sum(line[key] for line in lines)

    return {
        "accuracy": evaluation["accuracy"],
        "interval_95": evaluation["interval_95"],
        "accuracy_by_category": {name: part["accuracy"] for name, part in evaluation["by_category"].items()},
        "train_seconds": {
            stage: sum(line["step_time_s"] for line in lines if line["stage"] == stage) for stage in stages
        },
        "steps": {stage: sum(line["stage"] == stage for line in lines) for stage in stages},
        "flops_executed": total("flops_executed"),
        "flops_dense": total("flops_dense"),
        "visual_tokens_kept": total("visual_tokens_kept"),
        "visual_tokens_total": total("visual_tokens_total"),
        "mlps_skipped_for_visual": sum(
            len(line["layers_skipped_for_visual"]) for line in lines if line["stage"] == "tune"
        ),
        "loss": {stage: [line["loss"] for line in lines if line["stage"] == stage] for stage in stages},
        "skipped": [line["layers_skipped_for_visual"] for line in lines if line["stage"] == "tune"],
    }


def write(result: dict[str, Any], directory: Path) -> None:
    """Write report.json and report.png."""
    (directory / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    _plot_losses(axes[0], result)
    _plot_skipping(axes[1], result)
    _plot_accuracy(axes[2], result)
    figure.savefig(directory / "report.png", dpi=110)
    plt.close(figure)


def _runs(result: dict[str, Any]) -> list[str]:
    return [name for name in NAMES if name in result]


def _plot_losses(axes: Axes, result: dict[str, Any]) -> None:
    for name in _runs(result):
        done = 0
        for number, losses in enumerate(result[name]["loss"].values()):
            window = min(len(losses), 20)
            smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
            steps = np.arange(len(smooth)) + done + window
            axes.plot(steps, smooth, color=COLOURS[name], label=NAMES[name] if number == 0 else None)
            done += len(losses)
            if name == "dense" and number == 0:
                axes.axvline(done, color="0.8", linewidth=1)
                axes.text(done, 0.97, " tuning", transform=axes.get_xaxis_transform(), va="top", color="0.4")
    axes.set(xlabel="optimiser step (alignment, then tuning)", ylabel="loss, mean of 20 steps", title="Training loss")
    axes.legend()


def _plot_skipping(axes: Axes, result: dict[str, Any]) -> None:
    skipped = result["sts"]["skipped"]
    layers = 1 + max((layer for step in skipped for layer in step), default=0)
    ran = np.ones((layers, len(skipped)))
    for step, numbers in enumerate(skipped):
        ran[numbers, step] = 0
    blocks = min(40, len(skipped))
    share = np.stack([1 - part.mean(axis=1) for part in np.array_split(ran, blocks, axis=1)], axis=1)
    image = axes.imshow(
        share,
        aspect="auto",
        origin="lower",
        cmap="Oranges",
        vmin=0,
        vmax=1,
        extent=(0, len(skipped), -0.5, layers - 0.5),
    )
    axes.figure.colorbar(image, ax=axes, label="share of steps that left the MLP out")
    axes.set(
        xlabel="tuning step", ylabel="layer (0 is nearest the input)", title="Layers whose MLP visual tokens passed by"
    )


def _plot_accuracy(axes: Axes, result: dict[str, Any]) -> None:
    categories = sorted(result["dense"]["accuracy_by_category"])
    groups = ["all", *categories]
    by_category = result["question_only_accuracy_by_category"]
    bars = {"question only": [result["question_only_accuracy"], *(by_category.get(name, 0.0) for name in categories)]}
    for name in _runs(result):
        bars[name] = [result[name]["accuracy"], *(result[name]["accuracy_by_category"][c] for c in categories)]
    width = 0.8 / len(bars)
    places = np.arange(len(groups))
    for number, (name, values) in enumerate(bars.items()):
        axes.bar(
            places + (number - (len(bars) - 1) / 2) * width,
            values,
            width,
            color=COLOURS[name],
            label=NAMES.get(name, name),
        )
    for number, name in enumerate(_runs(result), start=1):
        low, high = result[name]["interval_95"]
        axes.plot([(number - (len(bars) - 1) / 2) * width] * 2, [low, high], color="black", linewidth=1)
    axes.set(ylim=(0, 1), title="Accuracy on test questions (bar: 95% interval)")
    axes.set_xticks(places, groups)
    axes.legend(fontsize="small")


def table(result: dict[str, Any]) -> str:
    """One table: accuracy by type of question, FLOPs, time, and what sparsity saved."""
    runs = _runs(result)
    categories = sorted(result["dense"]["accuracy_by_category"])
    by_category = result["question_only_accuracy_by_category"]
    rows = [["", "question only", *(NAMES[name] for name in runs)]]
    rows.append(
        ["accuracy", _percent(result["question_only_accuracy"]), *(_percent(result[n]["accuracy"]) for n in runs)]
    )
    rows.append(["  95% interval", "", *("-".join(_percent(x) for x in result[n]["interval_95"]) for n in runs)])
    for category in categories:
        rows.append(
            [
                f"  {category}",
                _percent(by_category.get(category, 0.0)),
                *(_percent(result[n]["accuracy_by_category"][category]) for n in runs),
            ]
        )
    rows.append(["steps, align + tune", "", *(" + ".join(map(str, result[n]["steps"].values())) for n in runs)])
    rows.append(
        [
            "seconds, align + tune",
            "",
            *(" + ".join(f"{s:.0f}" for s in result[n]["train_seconds"].values()) for n in runs),
        ]
    )
    rows.append(["FLOPs executed", "", *(f"{result[n]['flops_executed']:.3g}" for n in runs)])
    rows.append(["FLOPs, same steps dense", "", *(f"{result[n]['flops_dense']:.3g}" for n in runs)])
    rows.append(
        ["FLOPs saved", "", *(_percent(1 - result[n]["flops_executed"] / result[n]["flops_dense"]) for n in runs)]
    )
    rows.append(
        [
            "visual tokens dropped",
            "",
            *(_percent(1 - result[n]["visual_tokens_kept"] / result[n]["visual_tokens_total"]) for n in runs),
        ]
    )
    rows.append(["MLPs passed by, tuning", "", *(str(result[n]["mlps_skipped_for_visual"]) for n in runs)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines.append(
        f"\ngap to dense: STS {_points(result, 'sts')}"
        f"; exported against trained model: logits differ by at most {result['export_max_logit_difference']:.1e}"
    )
    return "\n".join(["", *lines])


def _points(result: dict[str, Any], name: str) -> str:
    return f"{100 * (result[name]['accuracy'] - result['dense']['accuracy']):+.1f} points"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
