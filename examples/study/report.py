"""Tables and plots of the study's results.

    python examples/study/report.py [--results FILE] [--write docs]

prints the tables; with --write they take the place of what stands between the marks of docs/study.md, and the plots are
written beside it.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intervals import Interval, paired_differences
from matplotlib.figure import Figure
from models import EXAMPLES, HERE, MODELS, arms_of

sys.path.append(str(EXAMPLES))
from common.questions import read_rows

CONTROL = "dense"
Line = dict[str, Any]


def main() -> int:
    """Print, or write into the documentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl", help="(default: the study's own)")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="of study.md, whose tables are replaced")
    options = parser.parse_args()
    lines = read_rows(options.results)
    made = tables(lines)
    for name, text in made.items():
        print(f"\n{name}\n{text}")
    if options.write is not None:
        page = options.write / "study.md"
        page.write_text(filled(page.read_text(), made))
        for name in dict.fromkeys(line["model"] for line in lines):
            plot(name, lines, options.write / f"study_{name}.png")
    return 0


def tables(lines: Sequence[Line]) -> dict[str, str]:
    """Of each model the table of what was run, and what was not."""
    found = {}
    for name in MODELS:
        runs = by_arm(name, lines)
        found[name] = "\n\n".join(part for part in (table(name, runs) if runs else "", not_run(name, runs)) if part)
    return found


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with each table between its marks."""
    for name, text in tables.items():
        marks = rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)"
        page, count = re.subn(marks, lambda found, text=text: found[1] + text + found[2], page, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"the page has {count} places for the table of {name}, not one: <!-- table: {name} -->")
    return page


def by_arm(model: str, lines: Sequence[Line]) -> dict[str, dict[int, Line]]:
    """The runs of a model, by arm in the order of arms.yaml, and seed."""
    found: dict[str, dict[int, Line]] = {name: {} for name in arms_of(model)}
    for line in lines:
        if line["model"] == model:
            found[line["arm"]][line["seed"]] = line
    return {name: runs for name, runs in found.items() if runs}


COLUMNS = (
    "arm",
    "seeds",
    "exact answers",
    "less dense, points",
    "of dense",
    "loss of answers",
    "less dense",
    "image worth",
    "FLOPs saved here",
    "of a 7B's tuning",
)


def table(model: str, runs: dict[str, dict[int, Line]]) -> str:
    """Every arm that was run, in markdown. Differences are over the seeds that dense has too."""
    arms = arms_of(model)
    accuracy = {name: {seed: 100 * line["accuracy"] for seed, line in of.items()} for name, of in runs.items()}
    loss = {name: {seed: line["image"]["loss"] for seed, line in of.items()} for name, of in runs.items()}
    points, nats = paired_differences(accuracy, CONTROL), paired_differences(loss, CONTROL)
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for name, of in runs.items():
        each = " ".join(f"{value:.1f}" for value in accuracy[name].values())
        executed, full = (sum(line[key] for line in of.values()) for key in ("flops_executed", "flops_dense"))
        rows.append(
            (
                f"`{name}`: {arms[name].about}",
                str(len(of)),
                f"{statistics.mean(accuracy[name].values()):.1f}%" + (f" ({each})" if len(of) > 1 else ""),
                shown(points.get(name), ".1f"),
                f"{kept(accuracy[name], accuracy[CONTROL]):.1%}" if name in points else "",
                f"{statistics.mean(loss[name].values()):.3f}",
                shown(nats.get(name), ".3f"),
                f"{statistics.mean(line['image']['worth'] for line in of.values()):.2f}",
                f"{1 - executed / full:.1%}",
                f"{saved_of_7b(of):.0%}",
            )
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def not_run(model: str, runs: dict[str, dict[int, Line]]) -> str:
    """The arms that have no line, with the command that runs them; nothing where all have."""
    left = {name: arm for name, arm in arms_of(model).items() if name not in runs}
    if not left:
        return ""
    listed = "; ".join(f"`{name}` ({arm.about})" for name, arm in left.items())
    command = f"python examples/study/run.py --model {model} --arms {','.join(left)}"
    return f"Not run: {listed}.\n\n```bash\n{command}\n```"


def shown(found: Interval | None, form: str) -> str:
    """A difference with its interval."""
    if found is None:
        return ""
    return f"{found.mean:+{form}}" + (f" ± {found.half:{form}}" if found.half is not None else "")


def kept(arm: dict[int, float], control: dict[int, float]) -> float:
    """The share of the control's mean that an arm has, over the seeds in common."""
    common = arm.keys() & control.keys()
    return sum(arm[seed] for seed in common) / sum(control[seed] for seed in common)


def saved_of_7b(of: dict[int, Line]) -> float:
    """The same for every seed."""
    found: float = next(iter(of.values()))["saved_of_7b"]
    return found


def plot(model: str, lines: Sequence[Line], file: Path) -> None:
    """Accuracy against FLOPs saved of a 7B, and the training losses of the first seed."""
    runs = by_arm(model, lines)
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for number, (name, of) in enumerate(runs.items()):
        color = f"C{number % 10}"
        saved = 100 * saved_of_7b(of)
        values = [100 * line["accuracy"] for line in of.values()]
        axes[0].plot([saved] * len(values), values, ".", color=color, alpha=0.5)
        axes[0].plot([saved], [statistics.mean(values)], "o", color=color, label=name)
        losses = next(iter(of.values()))["loss_by_10_steps"]
        axes[1].plot([10 * (place + 1) for place in range(len(losses))], losses, color=color, label=name)
    if CONTROL in runs:
        dense = statistics.mean(100 * line["accuracy"] for line in runs[CONTROL].values())
        axes[0].axhline(dense, color="0.7", linestyle="--")
    axes[0].set(xlabel="tuning FLOPs of a 7B saved, %", ylabel="exact answers, %", title=f"{model}: quality kept")
    axes[1].set(xlabel="step", ylabel="training loss, mean of 10 steps", title="first seed", yscale="log")
    axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
