"""Train the stages of a recipe: `torchrun ... tools/train.py --config RECIPE.yaml [key.sub=value ...]`."""

import argparse
import sys

from megatron_sts.config import load_recipe, resolved_yaml
from megatron_sts.errors import LostRankError, MegatronStsError
from megatron_sts.heavy_imports import before_heavy_imports
from megatron_sts.planning import forecast, forecast_text
from megatron_sts.rank_errors import tell_error
from megatron_sts.versions import check_versions


def main() -> int:
    """Parse, train, print.

    2 on an error of the user's, 75 where the run stopped early and can be resumed, 76 where a rank was lost.
    """
    parser = argparse.ArgumentParser(description="Train a LLaVA-style model with the Sparse Training Scheme.")
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml")
    parser.add_argument("--stage", metavar="NAME", help="train this stage alone")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and the plan, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="e.g. stages.tune.skip.alpha=0")
    arguments = parser.parse_intermixed_args()
    before_heavy_imports()
    try:
        check_versions()
        recipe = load_recipe(arguments.config, arguments.overrides, check_files=not arguments.dry_run)
        if arguments.dry_run:
            found = forecast(recipe)
            print(f"{resolved_yaml(found.recipe)}\n{forecast_text(found)}")
        else:
            from megatron_sts.train.stages import train
            from megatron_sts.train.stopping import STOPPED

            if train(recipe, arguments.stage):
                return STOPPED
    except LostRankError as error:
        from megatron_sts.parallel.watchdog import LOST_RANK

        tell_error(error)
        return LOST_RANK
    except MegatronStsError as error:
        tell_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
