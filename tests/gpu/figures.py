"""What the GPU benchmark's measurements say. Pure: times and FLOPs in, figures and a table out."""

import statistics
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


def rows_of(result: dict[str, Any], setting: str, precision: str) -> list[Row]:
    """The dense and the sparse row of one result of tools/benchmark.py --compare dense,sts."""
    return [
        Row(
            result["stage"],
            "dense" if name == "dense" else setting,
            precision,
            run["step_time_s"],
            result["samples"],
            run["flops"],
            run["peak_memory_bytes"],
            None if name == "dense" else run["retained_saving"],
        )
        for name, run in result["runs"].items()
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


def combined(rows: list[Row]) -> list[tuple[str, float]]:
    """(what is compared, how many times faster both stages are than dense bf16), as far as it was measured."""
    dense = [find(rows, stage, "dense", "bf16") for stage in ("align", "tune")]
    ways = {
        "dense, FP8": ("dense", "dense", "fp8"),
        "STS, bf16: 144 tokens, alpha 0.5": ("144 tokens", "alpha 0.5", "bf16"),
        "STS, FP8: 144 tokens, alpha 0.5": ("144 tokens", "alpha 0.5", "fp8"),
        "STS, FP8: 36 tokens, alpha 1": ("36 tokens", "alpha 1.0", "fp8"),
        "STS, FP8: 36 tokens, alpha 1 and 144 tokens": ("36 tokens", "alpha 1.0, 144 tokens", "fp8"),
    }
    found = []
    for name, (align, tune, precision) in ways.items():
        both = [find(rows, "align", align, precision), find(rows, "tune", tune, precision)]
        if None not in both and None not in dense:
            found.append((name, two_stages(*dense) / two_stages(*both)))  # type: ignore[arg-type]
    return found


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
    lines += [f"| {name} | {factor:.2f} |" for name, factor in combined(rows)]
    return "\n".join(lines)
