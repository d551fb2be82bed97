"""What the GPU benchmark's measurements say. Pure: times and FLOPs in, figures, goals and a table out."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PEAK_FLOPS = 989e12
"""bf16 FLOP/s of an H100 or H200 SXM without sparsity, by the data sheet."""
SAMPLES = {"align": 558_128, "tune": 665_298}
"""Samples of LLaVA-1.5's two stages."""


@dataclass(frozen=True)
class Row:
    """One way to train one stage. retained: the share of the FLOPs' saving that shows in time, None for dense."""

    stage: str
    setting: str
    precision: str
    step_time_s: float
    samples: int
    flops: float
    memory: float
    retained: float | None

    @property
    def samples_per_second(self) -> float:
        """Samples of the global batch over the time of a step."""
        return self.samples / self.step_time_s

    def utilisation(self, ceiling: float) -> float:
        """Executed FLOP/s as a share of `ceiling` FLOP/s."""
        return self.flops / self.step_time_s / ceiling


def rows_of(result: dict[str, Any], precision: str) -> list[Row]:
    """The rows of one part's result, as tests/gpu/measure.py gives it."""
    return [
        Row(
            result["stage"],
            setting,
            precision,
            run["step_time_s"],
            result["samples"],
            run["flops"],
            run["peak_memory_bytes"],
            run["retained_saving"],
        )
        for setting, run in result["runs"].items()
    ]


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
    "STS, FP8: 36 tokens, alpha 0.5": ("36 tokens", "alpha 0.5", "fp8"),
    "STS, FP8: 144 tokens, alpha 1": ("144 tokens", "alpha 1.0", "fp8"),
    "STS, FP8: 36 tokens, alpha 1": ("36 tokens", "alpha 1.0", "fp8"),
    "STS, FP8: 144 tokens, then alpha 1 and 144 tokens": ("144 tokens", "alpha 1.0, 144 tokens", "fp8"),
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
    """What the benchmark should reach. value: from the rows, None where they are not there. looks_at: the rows (stage,
    setting, precision) whose profile tells why it was missed."""

    name: str
    least: float
    value: Callable[[list[Row]], float | None]
    looks_at: tuple[tuple[str, str, str], ...]


def _utilisation(stage: str) -> Callable[[list[Row]], float | None]:
    def value(rows: list[Row]) -> float | None:
        row = find(rows, stage, "dense", "bf16")
        return None if row is None else row.utilisation(PEAK_FLOPS)

    return value


def _fp8_over_bf16(stage: str) -> Callable[[list[Row]], float | None]:
    def value(rows: list[Row]) -> float | None:
        slow, fast = (find(rows, stage, "dense", precision) for precision in ("bf16", "fp8"))
        return None if slow is None or fast is None else slow.step_time_s / fast.step_time_s

    return value


def _retained(stage: str, setting: str) -> Callable[[list[Row]], float | None]:
    def value(rows: list[Row]) -> float | None:
        row = find(rows, stage, setting, "bf16")
        return None if row is None else row.retained

    return value


def _both_stages(name: str) -> Callable[[list[Row]], float | None]:
    return lambda rows: combined(rows, name)


STAGES = {"align": "144 tokens", "tune": "alpha 0.5"}
"""The sparse setting of each stage that the goals are for."""
_BOTH, _SPARSER = "STS, FP8: 144 tokens, alpha 0.5", "STS, FP8: 36 tokens, then alpha 1 and 144 tokens"
GOALS = (
    *(
        Goal(f"{stage}: dense bf16, share of 989 TFLOP/s", 0.45, _utilisation(stage), ((stage, "dense", "bf16"),))
        for stage in STAGES
    ),
    *(
        Goal(f"{stage}: FP8 over bf16, dense", 1.25, _fp8_over_bf16(stage), ((stage, "dense", "fp8"),))
        for stage in STAGES
    ),
    Goal("retained saving at 144 tokens", 0.85, _retained("align", "144 tokens"), (("align", "144 tokens", "bf16"),)),
    *(
        Goal(f"retained saving of skipping, {alpha}", 0.9, _retained("tune", alpha), (("tune", alpha, "bf16"),))
        for alpha in ("alpha 0.5", "alpha 1.0")
    ),
    *(
        Goal(
            f"both stages over dense bf16: {name}",
            least,
            _both_stages(name),
            (("align", WAYS[name][0], "fp8"), ("tune", WAYS[name][1], "fp8")),
        )
        for name, least in ((_BOTH, 1.8), (_SPARSER, 2.5))
    ),
)
"""On one H200, at LLaVA-1.5-7B's shapes."""


def missed(rows: list[Row]) -> list[Goal]:
    """The goals that were measured and not reached."""
    values = ((goal, goal.value(rows)) for goal in GOALS)
    return [goal for goal, value in values if value is not None and value < goal.least]


def to_profile(rows: list[Row]) -> list[tuple[str, str, str]]:
    """(stage, setting, precision) whose profiles tell why goals were missed, each once, in the order of the goals."""
    return list(dict.fromkeys(row for goal in missed(rows) for row in goal.looks_at))


def table(rows: list[Row], ceiling: float) -> str:
    """Markdown. ceiling: FLOP/s of a plain bf16 matrix product on the machine."""
    lines = [
        "| stage | setting | precision | step s | samples/s | TFLOP/s | of 989 | of measured | GiB | retained |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        retained = "" if row.retained is None else f"{row.retained:.2f}"
        lines.append(
            f"| {row.stage} | {row.setting} | {row.precision} | {row.step_time_s:.4f} | {row.samples_per_second:.1f} "
            f"| {row.flops / row.step_time_s / 1e12:.0f} | {row.utilisation(PEAK_FLOPS):.1%} "
            f"| {row.utilisation(ceiling):.1%} | {row.memory / 2**30:.1f} | {retained} |"
        )
    lines += ["", "| both stages, against dense bf16 | times faster |", "|---|---|"]
    lines += [f"| {name} | {factor:.2f} |" for name in WAYS if (factor := combined(rows, name)) is not None]
    lines += ["", "| goal | least | measured | |", "|---|---|---|---|"]
    for goal in GOALS:
        value = goal.value(rows)
        if value is not None:
            lines.append(f"| {goal.name} | {goal.least} | {value:.3f} | {'' if value >= goal.least else 'missed'} |")
    return "\n".join(lines)
