"""Every row of docs/benchmarks.md: python -m tests.gpu.benchmark --output DIR --part bf16|fp8|linear|profile

Each stage is timed in a process of its own (tests/gpu/measure.py), all its settings in turn; what one has measured is
written before the next begins. Parts write into one directory, results.json and table.md; the table has all that is
there. profile: a step under torch's profiler for each goal that was missed, profile_*.txt.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.gpu.figures import Row, determination, rows_of, table, to_profile

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "examples" / "benchmark_h200" / "sts.yaml"
RUNS = {
    "bf16": [("align", "bf16"), ("tune", "bf16")],
    "fp8": [("align", "fp8"), ("tune", "fp8")],
    "linear": [("linear", "bf16")],
}
"""By part: what is measured, one process each, as (part of tests/gpu/settings.py, precision)."""


def measured_ceiling(size: int = 8192, repeats: int = 20) -> float:
    """FLOP/s of a bf16 matrix product of random data: the median of timed products."""
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for number in range(repeats + 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        left @ right
        end.record()
        end.synchronize()
        if number >= 5:
            times.append(start.elapsed_time(end) / 1e3)
    return 2 * size**3 / sorted(times)[repeats // 2]


def layers_that_fit(device_bytes: int) -> list[str]:
    """Overrides for a device that does not hold the recipe's 16 layers with their optimiser's state (18 bytes a
    parameter, 63 GB, and activations): 8 layers where there are fewer than 100 GB."""
    return ["model.architecture.language.layers=8"] if device_bytes < 100e9 else []


class Driver:
    """Starts the measuring processes and keeps what they found."""

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._file: Path = options.output / "results.json"
        self.results: dict[str, Any] = json.loads(self._file.read_text()) if self._file.is_file() else {}
        self.failed: list[str] = []

    def measure(self, part: str, precision: str) -> None:
        """Time a part, and add it to the results."""
        result = self._options.output / f"{part}_{precision}.json"
        amounts = [
            f"--{name}={value}"
            for name, value in (("plans", self._options.plans), ("repeats", self._options.repeats))
            if value is not None
        ]
        if self._run(part, precision, result, amounts):
            self.results.setdefault("measured", {})[f"{part}|{precision}"] = json.loads(result.read_text())
            self.keep()

    def profile(self, stage: str, setting: str, precision: str) -> None:
        """One step of a setting under the profiler."""
        words = "_".join([stage, *setting.replace(",", "").split(), precision])
        if self._run(stage, precision, self._options.output / f"profile_{words}.txt", ["--profile", setting]):
            print(f"profile of {stage}, {setting}, {precision}: profile_{words}.txt", flush=True)

    def _run(self, part: str, precision: str, result: Path, arguments: list[str]) -> bool:
        command = [sys.executable, "-m", "tests.gpu.measure", str(self._options.recipe), part, str(result), *arguments]
        command += [f"precision={precision}", *self._options.overrides]
        try:
            subprocess.run(command, cwd=ROOT, timeout=self._options.timeout, check=True)
        except subprocess.SubprocessError as error:
            self.failed.append(f"{part}, {precision}")
            print(f"{part}, {precision}: not measured ({error})", file=sys.stderr, flush=True)
            return False
        return True

    def keep(self) -> None:
        """Write what there is, whole or not at all."""
        for name, text in (
            ("results.json", json.dumps(self.results, indent=1)),
            ("table.md", report(self.results) + "\n"),
        ):
            partial = self._options.output / f"{name}.partial"
            partial.write_text(text)
            partial.replace(self._options.output / name)


def main(arguments: list[str] | None = None) -> int:
    """Measure the parts that are asked for; returns 1 where something could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--part", choices=[*RUNS, "profile"], default="bf16")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--plans", type=int, help="steps of a stage that are timed")
    parser.add_argument("--repeats", type=int, help="times that each of them is timed")
    parser.add_argument("--timeout", type=int, default=260, help="seconds that one process may take (default 260)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.recipe == RECIPE and torch.cuda.is_available():
        # In front, so that what is given holds.
        options.overrides[:0] = layers_that_fit(torch.cuda.get_device_properties(0).total_memory)
    driver = Driver(options)
    if "ceiling" not in driver.results and torch.cuda.is_available():
        driver.results["ceiling"] = measured_ceiling()
        driver.keep()
    if options.part == "profile":
        for row in to_profile(rows(driver.results)):
            driver.profile(*row)
    else:
        for part, precision in RUNS[options.part]:
            driver.measure(part, precision)
    print(report(driver.results))
    return 1 if driver.failed else 0


def rows(results: dict[str, Any]) -> list[Row]:
    """The rows of the stages, those of the line left out."""
    measured = ([*key.split("|"), result] for key, result in results.get("measured", {}).items())
    return [row for part, precision, result in measured if part != "linear" for row in rows_of(result, precision)]


def report(results: dict[str, Any]) -> str:
    """The table of all that was measured."""
    ceiling = results.get("ceiling")
    text = table(rows(results), ceiling or float("nan"))
    line = results.get("measured", {}).get("linear|bf16")
    if line is not None:
        points = [(run["layers_skipped"], run["step_time_s"]) for run in line["runs"].values()]
        text += f"\n\nStep time against layers skipped: R² = {determination(*map(list, zip(*points, strict=True))):.4f}"
    if ceiling:
        text += f"\n\nMatrix product of bf16, measured: {ceiling / 1e12:.0f} TFLOP/s"
    on = sorted({f"{result['runs_on']}; {result['layers']} layers" for result in results.get("measured", {}).values()})
    return "\n\n".join([text, *on])


if __name__ == "__main__":
    sys.exit(main())
