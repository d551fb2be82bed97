"""What a checkpoint costs: `python -m tests.parallel.measure_saves [--ranks RANKS] [--hidden SIZE]`.

The bytes that each data-parallel rank holds, writes and reads for one, with the distributed and the plain optimiser.
How long training stands still, with the distributed one: the same steps with every checkpoint waited for and with them
written beside training, alternating. Two tables on standard output.
"""

import argparse
import copy
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from megatron_sts.config import METRICS_FILE, Recipe, checkpoint_root
from megatron_sts.parallel.device import peak_memory_bytes, reset_peak_memory
from megatron_sts.parallel.groups import start_groups
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper
from megatron_sts.train.checkpoint import load_checkpoint
from megatron_sts.train.checkpoint_save import CheckpointSave
from megatron_sts.train.stages import train
from tests.parallel.saved_bytes import bytes_beside, bytes_read, bytes_to_write
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, tiny_recipe

STEPS, EVERY, ROUNDS = 13, 4, 2
MIB = 2**20


def _recipe(root: Path, name: str, hidden: int, distributed: bool = True, **checkpoint: object) -> Recipe:
    architecture = copy.deepcopy(ARCHITECTURE)
    architecture["language"] |= {"hidden_size": hidden, "ffn_hidden_size": 4 * hidden}
    return tiny_recipe(
        root,
        output_dir=str(root / name),
        precision="bf16",
        model={"architecture": architecture},
        optimizer={"distributed": distributed},
        checkpoint={"keep_last": 1} | checkpoint,
        align__steps=1,
        tune__steps=STEPS,
        tune__data={"text_tokens": 20},
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


def _stalls(root: Path, ranks: int, hidden: int) -> None:
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ("waiting", "beside", "none")}
    size = 0
    for number in range(ROUNDS):
        for name, (stalls, steps) in found.items():
            settings = {"every_steps": None if name == "none" else EVERY, "asynchronous": name == "beside"}
            recipe = _recipe(root, f"{name}{number}", hidden, **settings)
            run_ranks(ranks, train, recipe, timeout=600.0)
            size = sum(file.stat().st_size for file in checkpoint_root(recipe).glob("tune-*/*"))
            of_saves, of_steps = _figures(recipe)
            stalls += of_saves
            steps += of_steps
    print(f"\ncheckpoint of {size / MIB:,.0f} MiB, {ranks} ranks, {ROUNDS} x {STEPS // EVERY} saves")
    print("| | stands still for a save, s (median, largest) | step without that, s (median, mean) |\n|---|---|---|")
    for name, (stalls, steps) in found.items():
        print(
            f"| {name} | {statistics.median(stalls):.2f}, {max(stalls):.2f} | "
            f"{statistics.median(steps):.2f}, {statistics.mean(steps):.2f} |"
        )


def _bytes_of_rank(recipe: Recipe) -> dict[str, float]:
    """Of one save and one load after a step, in MiB."""
    stage = recipe.stage("tune")
    stepper = Stepper(recipe, stage, STEPS, start_groups(recipe.parallel, recipe.seed))
    stepper.time(StagePlanner(recipe, stage, STEPS, STEPS).plan(0))
    parts, read, found = stepper.parts, list[int](), dict[str, Any]()
    reset_peak_memory()
    before = peak_memory_bytes()
    state = parts.state()
    found["held"] = bytes_beside(parts, state)
    save = CheckpointSave(recipe, "tune", 1, state, copies=True)
    found["grown"] = peak_memory_bytes() - before
    found["written"] = bytes_to_write(save)
    path = save.finish()
    with bytes_read(read):
        load_checkpoint(path, parts.chunks, parts.optimizer, 1)
    return {name: size / MIB for name, size in (found | {"read": sum(read)}).items()}


def _bytes(root: Path, ranks: int, hidden: int) -> None:
    print("\n| MiB by rank | held beside the live state | memory grown by | written | read by a load |")
    print("|---|---|---|---|---|")
    for distributed in (True, False):
        recipe = _recipe(root, f"bytes{distributed}", hidden, distributed)
        of_ranks = run_ranks(ranks, _bytes_of_rank, recipe, timeout=600.0)
        cells = [", ".join(f"{rank[name]:.0f}" for rank in of_ranks) for name in ("held", "grown", "written", "read")]
        print(f"| {'distributed' if distributed else 'plain'} | {' | '.join(cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        _bytes(Path(directory), arguments.ranks, arguments.hidden)
        _stalls(Path(directory), arguments.ranks, arguments.hidden)


if __name__ == "__main__":
    main()
