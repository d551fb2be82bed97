"""How long training stands still for a checkpoint: `python -m tests.parallel.measure_saves [--hidden SIZE]`.

Trains the same steps with every checkpoint waited for and with them written beside training, alternating, on two ranks
that share the model's optimiser; one table on standard output.
"""

import argparse
import copy
import json
import statistics
import tempfile
from pathlib import Path

from megatron_sts.config import METRICS_FILE, Recipe, checkpoint_root
from megatron_sts.train.stages import train
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, tiny_recipe

STEPS, EVERY, ROUNDS = 13, 4, 2


def _recipe(root: Path, name: str, hidden: int, **checkpoint: object) -> Recipe:
    architecture = copy.deepcopy(ARCHITECTURE)
    architecture["language"] |= {"hidden_size": hidden, "ffn_hidden_size": 4 * hidden}
    return tiny_recipe(
        root,
        output_dir=str(root / name),
        model={"architecture": architecture},
        optimizer={"distributed": True},
        checkpoint={"keep_last": 1} | checkpoint,
        align__steps=1,
        tune__steps=STEPS,
    )


def _figures(recipe: Recipe) -> tuple[list[float], list[float]]:
    """Seconds that each save of tune stood still for, and seconds of the other steps without that."""
    lines = [json.loads(line) for line in (recipe.output_dir / METRICS_FILE).read_text().splitlines()]
    lines = [line for line in lines if line["stage"] == "tune" and line["step"] > EVERY]
    # A save's stalls are told with the steps that follow it, up to the next save.
    stalls = [0.0] * (STEPS // EVERY)
    for line in lines:
        stalls[(line["step"] - 1) // EVERY - 1] += line["save_stall_s"]
    return stalls, [line["step_time_s"] - line["save_stall_s"] for line in lines]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=512)
    hidden = parser.parse_args().hidden
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ("waiting", "beside", "none")}
        size = 0
        for number in range(ROUNDS):
            for name, (stalls, steps) in found.items():
                settings = {"every_steps": None if name == "none" else EVERY, "asynchronous": name == "beside"}
                recipe = _recipe(root, f"{name}{number}", hidden, **settings)
                run_ranks(2, train, recipe, timeout=600.0)
                size = sum(file.stat().st_size for file in checkpoint_root(recipe).glob("tune-*/*"))
                of_saves, of_steps = _figures(recipe)
                stalls += of_saves
                steps += of_steps
    print(f"checkpoint of {size / 2**20:,.0f} MiB, 2 ranks, {ROUNDS} x {STEPS // EVERY} saves")
    print("| | stands still for a save, s (median, largest) | step without that, s (median, mean) |\n|---|---|---|")
    for name, (stalls, steps) in found.items():
        print(
            f"| {name} | {statistics.median(stalls):.2f}, {max(stalls):.2f} | "
            f"{statistics.median(steps):.2f}, {statistics.mean(steps):.2f} |"
        )


if __name__ == "__main__":
    main()
