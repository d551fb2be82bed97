"""The study: trains the arms of arms.yaml with several seeds and keeps a line of results for each run.

    python examples/study/run.py --model smollm2 --arms dense,captions --seeds 1,2,3

Begins from what the example's own run has made (runs/smollm2, runs/quickstart): its data and converted weights. All
arms share one alignment, but those that are sparse in it. A run that has its line in results.jsonl is not done again,
and one that was interrupted resumes: the same command goes on. report.py makes tables and plots of the lines.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import EXAMPLES, MODELS, RUN, Arm, Model, arms_of, root

sys.path.append(str(EXAMPLES))
from common.questions import read_rows

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SEEDS = "1,2,3"


def main() -> int:
    """Run what has no line yet, seed by seed, so that at any time the arms can be compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=MODELS)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--whole", action="store_true", help="the example's own number of steps: for a GPU")
    size.add_argument("--tiny", action="store_true", help="two steps a run: shows that it runs, learns nothing")
    parser.add_argument("--arms", help="names of arms.yaml, comma between (default: all of the model)")
    parser.add_argument("--seeds", default=SEEDS, help="comma between (default: %(default)s)")
    parser.add_argument("--directory", type=Path, default=ROOT, help="where runs/ lies (default: the repository)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of every recipe")
    options = parser.parse_intermixed_args()
    model = MODELS[options.model]
    chosen = "whole" if options.whole else "tiny" if options.tiny else "short"
    arms = arms_of(model.name)
    names = options.arms.split(",") if options.arms else list(arms)
    if unknown := [name for name in names if name not in arms]:
        parser.error(f"--arms: {', '.join(unknown)} not in arms.yaml; there are {', '.join(arms)}")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    os.chdir(options.directory)
    if not (model.made / "data").is_dir():
        where = f"run examples/{model.example}/run.sh first, or give its --directory"
        parser.error(f"{model.made}/data is not there; {where}")
    RUN.mkdir(parents=True, exist_ok=True)
    results = RUN / "results.jsonl"
    runs = left(model.name, chosen, seeds, [arms[name] for name in names], results)
    print(f"{len(seeds) * len(names)} runs, {len(runs)} left", flush=True)
    began = time.monotonic()
    for number, (seed, arm) in enumerate(runs):
        result = one_run(model, chosen, arm, seed, options.overrides)
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        seconds = (time.monotonic() - began) / (number + 1) * (len(runs) - number - 1)
        print(
            f"{number + 1}/{len(runs)} {arm.name}, seed {seed}: {result['accuracy']:.1%} exact, image worth "
            f"{result['image']['worth']:.2f} nats | ETA {time.strftime('%H:%M:%S', time.gmtime(seconds))}",
            flush=True,
        )
    return 0


def left(model: str, size: str, seeds: Sequence[int], arms: Sequence[Arm], results: Path) -> list[tuple[int, Arm]]:
    """The runs that have no line of results yet, seed by seed."""
    lines = read_rows(results) if results.is_file() else []
    done = {(line["model"], line["size"], line["arm"], line["seed"]) for line in lines}
    return [(seed, arm) for seed in seeds for arm in arms if (model, size, arm.name, seed) not in done]


def one_run(model: Model, size: str, arm: Arm, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """A run's line of results; trained in a process of its own, whose memory is free again after it."""
    made = root(model, size) / arm.name / str(seed) / "result.json"
    if not made.is_file():
        command = [sys.executable, "-W", "ignore", str(HERE / "one_run.py"), "--model", model.name, "--size", size]
        command += ["--arm", arm.name, "--seed", str(seed), *overrides]
        subprocess.run(command, check=True, env=environment())
    result: dict[str, Any] = json.loads(made.read_text())
    return result


def environment() -> dict[str, str]:
    """Threads that wait asleep, not busy; compiling takes longer than it saves here."""
    quiet = {"TORCH_COMPILE_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)} | quiet


if __name__ == "__main__":
    sys.exit(main())
