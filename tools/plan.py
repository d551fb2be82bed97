"""Plan a run before any GPU is rented: `python tools/plan.py --config RECIPE.yaml [key.sub=value ...]`."""

import argparse
import json
import sys
from pathlib import Path

from megatron_sts.arguments import above_zero, positive
from megatron_sts.command import command
from megatron_sts.config import load_recipe
from megatron_sts.planning import Hardware, forecast, forecast_record, forecast_text, step_records


@command
def main() -> int:
    """Parse, plan, print."""
    parser = argparse.ArgumentParser(description="What a recipe skips, saves, takes and holds, from the recipe alone.")
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml")
    parser.add_argument(
        "--data-parallel", type=positive, default=1, metavar="N", help="data-parallel ranks (default 1)"
    )
    parser.add_argument(
        "--accept", action="append", default=[], metavar="KEY", help="as of tools/train.py, for the run in output_dir"
    )
    parser.add_argument(
        "--gpu-memory", type=above_zero, metavar="GIB", help="also the cheapest setting that fits such a GPU"
    )
    parser.add_argument("--gpus-per-node", type=positive, default=8, metavar="N", help="default 8")
    parser.add_argument(
        "--intra-node", type=above_zero, default=350.0, metavar="GB/S", help="sent by a GPU in its node (default 350)"
    )
    parser.add_argument(
        "--inter-node", type=above_zero, default=40.0, metavar="GB/S", help="sent by a GPU to other nodes (default 40)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one json object instead of text")
    form.add_argument(
        "--dump-steps", type=positive, metavar="N", help="the plan of each stage's first N steps, as json"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw skip probabilities and pipeline load")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="e.g. parallel.pipeline=4")
    arguments = parser.parse_intermixed_args()
    recipe = load_recipe(arguments.config, arguments.overrides, check_files=False)
    if arguments.dump_steps:
        for record in step_records(recipe, arguments.dump_steps, arguments.data_parallel, arguments.accept):
            print(json.dumps(record))
        return 0
    hardware = Hardware(
        gpus_per_node=arguments.gpus_per_node,
        intra_node=arguments.intra_node * 1e9,
        inter_node=arguments.inter_node * 1e9,
        memory=arguments.gpu_memory and arguments.gpu_memory * 2**30,
    )
    found = forecast(recipe, arguments.data_parallel, arguments.accept, hardware)
    if arguments.plot:
        from megatron_sts.planning.plot import plot_forecast

        plot_forecast(found, arguments.plot)
    print(json.dumps(forecast_record(found), indent=1) if arguments.json else forecast_text(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
