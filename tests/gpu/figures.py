"""What the timed steps say: from the records of tests/gpu/speed.py to figures, goals and a table. Pure."""

import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megatron_sts.train.benchmark import Run

PEAK_FLOPS = 989e12
"""bf16 FLOP/s of an H100 or H200 SXM without sparsity, by the data sheet."""
SAMPLES = {"align": 558_128, "tune": 665_298}
"""Samples of LLaVA-1.5's two stages."""
Record = dict[str, Any]
"""A line of results.jsonl."""


@dataclass(frozen=True)
class Row:
    """One way to train one stage.

    retained: the share of the FLOPs' saving over dense of the same precision that shows in time; None for dense.
    """

    stage: str
    setting: str
    precision: str
    step_time_s: float
    samples: int
    flops: float
    memory: float
    layers_skipped: float
    steps: int
    retained: float | None = None

    @property
    def samples_per_second(self) -> float:
        """Samples of the global batch over the time of a step."""
        return self.samples / self.step_time_s

    def utilisation(self, ceiling: float) -> float:
        """Executed FLOP/s as a share of `ceiling` FLOP/s."""
        return self.flops / self.step_time_s / ceiling


def rows_of(records: list[Record], part: str = "speed") -> list[Row]:
    """A row for each way, in the order in which they were first timed."""
    steps: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record["part"] == part and record["name"] == "step":
            steps[record["stage"], record["setting"], record["precision"]].append(record)
    rows = [_row(*way, of_way) for way, of_way in steps.items()]
    return [
        Row(**vars(row) | {"retained": _retained_of(row, find(rows, row.stage, "dense", row.precision))})
        for row in rows
    ]


def _row(stage: str, setting: str, precision: str, steps: list[Record]) -> Row:
    times: dict[Any, list[float]] = defaultdict(list)
    for step in steps:
        times[step["layers_skipped"]].append(step["seconds"])
    return Row(
        stage,
        setting,
        precision,
        # The median of the steps that ran as many layers, the mean over all steps.
        Run([], times).step_time_s,
        steps[0]["samples"],
        statistics.fmean(step["flops"] for step in steps),
        max(step["memory"] for step in steps),
        statistics.fmean(step["layers_skipped"] for step in steps),
        len(steps),
    )


def _retained_of(row: Row, dense: Row | None) -> float | None:
    if dense is None or row.setting == "dense" or row.flops >= dense.flops:
        return None
    return (1 - row.step_time_s / dense.step_time_s) / (1 - row.flops / dense.flops)


def two_stages(align: Row, tune: Row) -> float:
    """Seconds of both stages of LLaVA-1.5, one after the other, at the measured rates."""
    return SAMPLES["align"] / align.samples_per_second + SAMPLES["tune"] / tune.samples_per_second


def determination(x: list[float], y: list[float]) -> float:
    """R squared of the straight line through measured points."""
    return statistics.correlation(x, y) ** 2


def find(rows: list[Row], stage: str, setting: str, precision: str) -> Row | None:
    """The first row of that kind, None where it was not measured."""
    wanted = (stage, setting, precision)
    return next((row for row in rows if (row.stage, row.setting, row.precision) == wanted), None)


WAYS = {
    "dense, FP8": ("dense", "dense", "fp8"),
    "STS, bf16: 144 tokens, alpha 0.5": ("144 tokens", "alpha 0.5", "bf16"),
    "STS, FP8: 144 tokens, alpha 0.5": ("144 tokens", "alpha 0.5", "fp8"),
    "STS, FP8: 36 tokens, then alpha 1 and 144 tokens": ("36 tokens", "alpha 1.0, 144 tokens", "fp8"),
}
"""Both stages together, by name: the settings of the two, and the precision."""


def combined(rows: list[Row], name: str) -> float | None:
    """How many times faster a way through both stages is than dense bf16; None where a part was not measured."""
    align, tune, precision = WAYS[name]
    measured = [
        find(rows, "align", "dense", "bf16"),
        find(rows, "tune", "dense", "bf16"),
        find(rows, "align", align, precision),
        find(rows, "tune", tune, precision),
    ]
    found = [row for row in measured if row is not None]
    return two_stages(*found[:2]) / two_stages(*found[2:]) if len(found) == 4 else None


@dataclass(frozen=True)
class Goal:
    """What the benchmark should reach. value: from the rows, None where they are not there."""

    name: str
    least: float
    value: Callable[[list[Row]], float | None]


def _utilisation(stage: str) -> Callable[[list[Row]], float | None]:
    def value(rows: list[Row]) -> float | None:
        row = find(rows, stage, "dense", "bf16")
        return None if row is None else row.utilisation(PEAK_FLOPS)

    return value


def _faster(stage: str, slow: tuple[str, str], fast: tuple[str, str]) -> Callable[[list[Row]], float | None]:
    def value(rows: list[Row]) -> float | None:
        one, other = find(rows, stage, *slow), find(rows, stage, *fast)
        return None if one is None or other is None else one.step_time_s / other.step_time_s

    return value


def _retained(stage: str, setting: str, precision: str) -> Callable[[list[Row]], float | None]:
    def value(rows: list[Row]) -> float | None:
        row = find(rows, stage, setting, precision)
        return None if row is None else row.retained

    return value


def _both_stages(name: str) -> Callable[[list[Row]], float | None]:
    return lambda rows: combined(rows, name)


_PAPERS = {"align": "144 tokens", "tune": "alpha 0.5"}
_STAGES = ("align", "tune")
GOALS = (
    *(
        Goal(f"both stages over dense bf16: {name}", least, _both_stages(name))
        for name, least in (
            ("STS, FP8: 144 tokens, alpha 0.5", 1.8),
            ("STS, FP8: 36 tokens, then alpha 1 and 144 tokens", 2.5),
        )
    ),
    Goal("align: 144 of 576 tokens over dense, bf16", 2.5, _faster("align", ("dense", "bf16"), ("144 tokens", "bf16"))),
    *(
        Goal(
            f"{stage}: retained saving, {_PAPERS[stage]}, {precision}",
            0.95,
            _retained(stage, _PAPERS[stage], precision),
        )
        for stage in _STAGES
        for precision in ("bf16", "fp8")
    ),
    *(Goal(f"{stage}: dense bf16, share of 989 TFLOP/s", 0.45, _utilisation(stage)) for stage in _STAGES),
    *(
        Goal(f"{stage}: FP8 over bf16, dense", 1.25, _faster(stage, ("dense", "bf16"), ("dense", "fp8")))
        for stage in _STAGES
    ),
)
"""On one H100 or H200, at LLaVA-1.5-7B's shapes."""


def table(rows: list[Row], ceiling: float | None) -> str:
    """Markdown. ceiling: FLOP/s of a plain bf16 matrix product on the machine, where it was measured."""
    lines = [
        "| stage | setting | precision | step s | steps | samples/s | TFLOP/s | of 989 | of product | GiB | retained |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        retained = "" if row.retained is None else f"{row.retained:.3f}"
        lines.append(
            f"| {row.stage} | {row.setting} | {row.precision} | {row.step_time_s:.4f} | {row.steps} "
            f"| {row.samples_per_second:.1f} | {row.flops / row.step_time_s / 1e12:.0f} "
            f"| {row.utilisation(PEAK_FLOPS):.1%} | {f'{row.utilisation(ceiling):.1%}' if ceiling else ''} "
            f"| {row.memory / 2**30:.1f} | {retained} |"
        )
    lines += ["", "| both stages, against dense bf16 | times faster |", "|---|---|"]
    lines += [f"| {name} | {factor:.2f} |" for name in WAYS if (factor := combined(rows, name)) is not None]
    lines += ["", "| goal | least | measured | |", "|---|---|---|---|"]
    for goal in GOALS:
        value = goal.value(rows)
        measured, verdict = (
            ("", "not run") if value is None else (f"{value:.3f}", "" if value >= goal.least else "missed")
        )
        lines.append(f"| {goal.name} | {goal.least} | {measured} | {verdict} |")
    return "\n".join(lines)
