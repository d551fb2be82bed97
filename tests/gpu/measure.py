"""Times the settings of one part in this process: python -m tests.gpu.measure RECIPE.yaml PART RESULT [key=value ...]

With --profile SETTING instead: one step of it under torch's profiler; RESULT is then a text of where its time went.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torch.profiler import profile

from megatron_sts.config import Recipe, load_recipe
from megatron_sts.model.precision import Machine, check_machine, what_runs
from megatron_sts.parallel.groups import start_groups, stop_groups
from megatron_sts.sts import StagePlanner
from megatron_sts.train.benchmark import Stepper, compare
from megatron_sts.train.comparison import Comparison, check_comparison
from tests.gpu.kernels import activities, kernels_of, times_text
from tests.gpu.settings import PARTS


def measure(recipe: Recipe, name: str, plans: int | None = None, repeats: int | None = None) -> dict[str, Any]:
    """A part's result, as `tools/benchmark.py --compare` gives it, and what ran."""
    part = PARTS[name]
    comparison = Comparison(
        part.stage,
        tuple(part.settings),
        plans=plans or part.plans,
        repeats=repeats or part.repeats,
        warm_up=2,
        changes=part.settings,
    )
    check_comparison(comparison, recipe)
    result = compare(recipe, comparison, lambda text: print(text, file=sys.stderr, flush=True))
    return {**result, "runs_on": what_runs(recipe), "layers": recipe.architecture.language.layers}


def profile_step(recipe: Recipe, name: str, setting: str, warm_up: int = 3) -> str:
    """Where the time of one step went, in the middle of the stage: kernels by kind and by name."""
    part = PARTS[name]
    comparison = Comparison(part.stage, (setting,), changes=part.settings)
    changed = comparison.recipe_of(setting, recipe)
    total = comparison.total_steps(recipe)
    place = start_groups(recipe.parallel, recipe.seed)
    stepper = Stepper(recipe, recipe.stage(part.stage), total, place)
    plan = StagePlanner(changed, changed.stage(part.stage), total, total).plan(total // 2)
    for _ in range(warm_up):
        stepper.time(plan)
    with profile(activities=activities()) as recorded:
        seconds, _ = stepper.time(plan)
    title = f"{part.stage}, {setting}, {recipe.precision}: a step of {seconds:.4f} s under the profiler"
    return times_text(title, kernels_of(recorded), seconds)


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("result", type=Path)
    parser.add_argument("--profile", metavar="SETTING")
    parser.add_argument("--plans", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args(arguments)
    recipe = load_recipe(options.recipe, options.overrides, check_files=False)
    check_machine(recipe, Machine.here())
    if options.profile is not None:
        text = profile_step(recipe, options.part, options.profile)
    else:
        text = json.dumps(measure(recipe, options.part, options.plans, options.repeats), indent=1)
    options.result.write_text(text + "\n")
    stop_groups()
    return 0


if __name__ == "__main__":
    sys.exit(main())
