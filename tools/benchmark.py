"""Times ways to train a stage side by side in one run.

python tools/benchmark.py --config RECIPE.yaml --compare dense,sts [--stage NAME] [key.sub=value ...]
python tools/benchmark.py --config RECIPE.yaml --suite compression [--stage NAME] [key.sub=value ...]
python tools/benchmark.py --config RECIPE.yaml --suite packing [--stage NAME] [key.sub=value ...]

The last reads the stage's data. Starts its own ranks as the recipe's layout asks. One json object on standard output,
talk on standard error.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from megatron_sts.arguments import positive
from megatron_sts.command import command
from megatron_sts.config import Recipe, check_world, load_recipe
from megatron_sts.errors import ConfigError
from megatron_sts.heavy_imports import before_heavy_imports
from megatron_sts.launch.own_ranks import is_rank, leave_result, run_on_ranks
from megatron_sts.train.comparison import (
    Comparison,
    check_comparison,
    check_compression,
    check_counts,
    compression_table,
    packing_table,
    table,
)
from megatron_sts.versions import check_versions

_TABLES = {"compression": compression_table, "packing": packing_table}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--compare", help="ways to train, dense among them: dense,sts,balanced,independent")
    what.add_argument(
        "--suite",
        choices=list(_TABLES),
        help="compression: bytes and time of visual tokens under sequence parallelism, against gathering them all; "
        "packing: step time and padding with data.packing, against without, over the stage's data",
    )
    parser.add_argument("--stage", help="training stage (default: the last one that skips or compresses)")
    parser.add_argument("--data-parallel", type=positive, default=1, help="data-parallel ranks (default 1)")
    parser.add_argument("--plans", type=int, default=6, help="steps of the stage that are timed (default 6)")
    parser.add_argument("--repeats", type=int, default=2, help="times that each of them is timed (default 2)")
    parser.add_argument("--warm-up", type=int, default=1, help="steps of each way before that (default 1)")
    parser.add_argument("--output", type=Path, help="also write the json to this file")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="e.g. parallel.pipeline=2")
    return parser.parse_intermixed_args(arguments)


@command
def main(arguments: list[str] | None = None) -> int:
    """Start the ranks, or be one; returns the exit code."""
    options = parse(arguments)
    before_heavy_imports()
    check_versions()
    recipe = load_recipe(options.config, options.overrides, check_files=False)
    if is_rank():
        run_rank(recipe, options)
        return 0
    return start_ranks(recipe, options, sys.argv[1:] if arguments is None else arguments)


def comparison_of(recipe: Recipe, options: argparse.Namespace) -> Comparison:
    """What the options ask for, checked; ConfigError names an option or a field that does not fit."""
    if options.suite == "packing":
        stage = recipe.stage(options.stage or recipe.stages[-1].name).name
        comparison = Comparison(stage, (), options.plans, options.repeats, options.warm_up)
        check_counts(comparison)
        return comparison
    sparse = [stage.name for stage in recipe.stages if stage.skip or stage.compress is not None]
    if options.stage is None and not sparse:
        raise ConfigError("no stage of the recipe skips or compresses: dense has nothing to be compared with")
    if options.suite == "compression":
        return compression_suite(recipe, options)
    ways = tuple(options.compare.split(","))
    comparison = Comparison(options.stage or sparse[-1], ways, options.plans, options.repeats, options.warm_up)
    check_comparison(comparison, recipe)
    return comparison


def compression_suite(recipe: Recipe, options: argparse.Namespace) -> Comparison:
    """What the compression suite measures: one stage, its own way; ConfigError where the recipe does not fit."""
    compressing = [stage.name for stage in recipe.stages if stage.compress is not None]
    if options.stage is None and not compressing:
        raise ConfigError("no stage of the recipe compresses: there is nothing to measure")
    comparison = Comparison(options.stage or compressing[-1], ("sts",), repeats=options.repeats)
    check_compression(comparison, recipe)
    return comparison


def start_ranks(recipe: Recipe, options: argparse.Namespace, arguments: list[str]) -> int:
    """Check everything, run this program on every rank, print what rank 0 left."""
    comparison_of(recipe, options)
    if options.output is not None:
        try:
            options.output.touch()
        except OSError as error:
            raise ConfigError(
                f"--output {options.output} cannot be written ({error.strerror}); give another"
            ) from error
    parallel = recipe.parallel
    ranks = parallel.tensor * parallel.pipeline * parallel.context * options.data_parallel
    check_world(recipe, ranks)
    code, text = run_on_ranks(Path(__file__).resolve(), arguments, ranks)
    if code != 0:
        return code
    print(_TABLES.get(options.suite, table)(json.loads(text)), file=sys.stderr)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")
    return 0


def run_rank(recipe: Recipe, options: argparse.Namespace) -> None:
    """This rank's part of the measurement."""
    from megatron_sts.parallel.groups import stop_groups
    from megatron_sts.train.benchmark import compare
    from megatron_sts.train.compression_benchmark import measure_compression
    from megatron_sts.train.packing_benchmark import measure_packing

    speaks = os.environ["RANK"] == "0"

    def say(text: str) -> None:
        if speaks:
            print(text, file=sys.stderr, flush=True)

    comparison = comparison_of(recipe, options)
    if options.suite == "compression":
        total_steps = comparison.total_steps(recipe)
        result = measure_compression(recipe, comparison.stage, total_steps, comparison.repeats, say)
    elif options.suite == "packing":
        result = measure_packing(recipe, comparison, say)
    else:
        result = compare(recipe, comparison, say)
    if speaks:
        leave_result(json.dumps(result, indent=2))
    stop_groups()


if __name__ == "__main__":
    sys.exit(main())
