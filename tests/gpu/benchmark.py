"""Every row of docs/benchmarks.md: python -m tests.gpu.benchmark --output DIR [--part bf16|fp8|linear] [key=value ...]

Runs tools/benchmark.py once for each setting, dense and sparse side by side in one run, and writes results.json and
table.md. Parts write into one directory, so that each can be run by itself; the table has all that is there.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.gpu.figures import Row, determination, rows_of, table

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "examples" / "benchmark_h200" / "sts.yaml"
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "576 tokens": ("align", ["stages.align.compress.keep_ratio=1.0"]),
    "288 tokens": ("align", ["stages.align.compress.keep_ratio=0.5"]),
    "144 tokens": ("align", []),
    "36 tokens": ("align", ["stages.align.compress.keep_ratio=0.0625"]),
    "alpha 0.0": ("tune", ["stages.tune.skip.alpha=0.0"]),
    "alpha 0.5": ("tune", []),
    "alpha 1.0": ("tune", ["stages.tune.skip.alpha=1.0", "stages.tune.skip.epsilon=0.0"]),
    "alpha 1.0, 144 tokens": (
        "tune",
        [
            "stages.tune.skip.alpha=1.0",
            "stages.tune.skip.epsilon=0.0",
            "stages.tune.compress={strategy: uniform, keep_ratio: 0.25}",
        ],
    ),
}
"""Settings by name: the stage, and how the recipe is changed for it."""
ALPHAS = (0.0, 0.25, 0.5, 0.75)


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


def run(recipe: Path, stage: str, overrides: list[str], plans: int, repeats: int, timeout: int) -> dict[str, Any]:
    """One result of tools/benchmark.py."""
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "--config", str(recipe), "--compare", "dense,sts"]
    command += ["--stage", stage, "--plans", str(plans), "--repeats", str(repeats), "--warm-up", "2", *overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=ROOT, timeout=timeout, check=True)
    return json.loads(done.stdout)


def main(arguments: list[str] | None = None) -> int:
    """Measure the parts that are asked for; returns 1 where a setting could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--part", choices=["bf16", "fp8", "linear"], default="bf16")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--plans", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=300, help="seconds that one setting may take")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if "ceiling" not in results and torch.cuda.is_available():
        results["ceiling"] = measured_ceiling()
    failed = []
    for name, precision, stage, overrides in _settings(options.part):
        try:
            found = run(
                options.recipe, stage, [*overrides, *options.overrides], options.plans, options.repeats, options.timeout
            )
        except (subprocess.SubprocessError, json.JSONDecodeError) as error:
            failed.append(name)
            print(f"{name}, {precision}: not measured ({error})", file=sys.stderr, flush=True)
            continue
        results.setdefault("measured", {})[f"{name}|{precision}"] = found
        file.write_text(json.dumps(results, indent=1))
    text = report(results)
    (options.output / "table.md").write_text(text + "\n")
    print(text)
    return 1 if failed else 0


def _settings(part: str) -> list[tuple[str, str, str, list[str]]]:
    """(name, precision, stage, overrides) of a part's settings."""
    if part == "linear":
        change = "stages.tune.skip={{alpha: {}, schedule: constant, selection: balanced}}"
        return [(f"constant {alpha}", "bf16", "tune", [change.format(alpha)]) for alpha in ALPHAS]
    precision = [] if part == "bf16" else ["precision=fp8"]
    return [(name, part, stage, [*changes, *precision]) for name, (stage, changes) in SETTINGS.items()]


def report(results: dict[str, Any]) -> str:
    """The table of all that was measured, dense rows once."""
    rows: list[Row] = []
    points: list[tuple[float, float]] = []
    for key, result in results.get("measured", {}).items():
        name, precision = key.split("|")
        if name.startswith("constant"):
            points.append((result["runs"]["sts"]["layers_skipped"], result["runs"]["sts"]["step_time_s"]))
            continue
        for row in rows_of(result, name, precision):
            if not any((row.stage, row.setting, row.precision) == (r.stage, r.setting, r.precision) for r in rows):
                rows.append(row)
    ceiling = results.get("ceiling")
    text = table(rows, ceiling or float("nan"))
    if len(points) > 2:
        text += f"\n\nStep time against layers skipped: R² = {determination(*map(list, zip(*points, strict=True))):.4f}"
    if ceiling:
        text += f"\n\nMatrix product of bf16, measured: {ceiling / 1e12:.0f} TFLOP/s"
    return text


if __name__ == "__main__":
    sys.exit(main())
