"""Trains the stages of a recipe.

python tools/launch.py --nproc-per-node N tools/train.py --config RECIPE.yaml [--stage NAME] [key.sub=value ...]
"""

import argparse
import sys

from megatron_sts.command import command
from megatron_sts.config import load_recipe, resolved_yaml
from megatron_sts.exit_codes import STOPPED
from megatron_sts.heavy_imports import before_heavy_imports
from megatron_sts.planning import forecast, forecast_text
from megatron_sts.versions import check_versions


@command
def main() -> int:
    """Parse, train, print; 75 where the run stopped early and can be resumed."""
    parser = argparse.ArgumentParser(description="Train a LLaVA-style model with the Sparse Training Scheme.")
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml")
    parser.add_argument("--stage", metavar="NAME", help="train this stage alone")
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="KEY",
        help="resume although this key differs from the checkpoint's; repeatable, e.g. stages.tune.steps",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the plan, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="e.g. stages.tune.skip.alpha=0")
    arguments = parser.parse_intermixed_args()
    before_heavy_imports()
    check_versions()
    recipe = load_recipe(arguments.config, arguments.overrides, check_files=not arguments.dry_run)
    if arguments.dry_run:
        found = forecast(recipe, accepted=arguments.accept)
        print(f"{resolved_yaml(found.recipe)}\n{forecast_text(found)}")
        return 0
    from megatron_sts.train.stages import train

    return STOPPED if train(recipe, arguments.stage, arguments.accept) else 0


if __name__ == "__main__":
    sys.exit(main())
