"""The comparison: report.json, report.png and the table on the terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.report import (
    NAMES,
    QUESTION_ONLY,
    Row,
    accuracy_rows,
    arms_of,
    closing_line,
    plot_accuracy,
    plot_losses,
    text_table,
    training_rows,
    write_report,
)


def table(found: dict[str, Any]) -> str:
    """The table for the terminal."""
    columns = [QUESTION_ONLY, *(NAMES[arm] for arm in arms_of(found))]
    rows = [*accuracy_rows(found), *_image_rows(found), *training_rows(found)]
    return f"{text_table(columns, rows)}\n\n{closing_line(found, 'tune')}"


def _image_rows(found: dict[str, Any]) -> list[Row]:
    names = {
        "loss": "loss of test answers, nats a token",
        "loss_with_another_image": "  with another image",
        "loss_without_image": "  without any",
        "worth": "  what the image is worth",
    }
    return [(name, ["", *(f"{found[arm]['image'][key]:.3f}" for arm in arms_of(found))]) for key, name in names.items()]


def write(found: dict[str, Any], directory: Path) -> None:
    """Write report.json and report.png."""

    def draw(axes: Sequence[Axes]) -> None:
        for axis, stage in zip(axes, found["dense"]["loss"], strict=False):
            plot_losses(axis, found, stage, window=10)
        plot_accuracy(axes[2], found)

    write_report(found, directory, draw)
