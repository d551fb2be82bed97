"""Measures what each layer of a stage's model is worth on the stage's own data, and what may be skipped.

python tools/probe.py --config RECIPE.yaml [--stage NAME] [--samples N] [--json] [--plot FILE.png] [key.sub=value ...]

Starts its own ranks as the recipe's layout asks; under tools/launch.py it is one of those there. Trains nothing and
changes no file but those that it is asked to write.
"""

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

from megatron_sts.arguments import positive
from megatron_sts.command import command
from megatron_sts.config import SkipConfig, check_world, load_recipe
from megatron_sts.errors import ConfigError
from megatron_sts.exit_codes import INTERRUPTED
from megatron_sts.heavy_imports import before_heavy_imports
from megatron_sts.launch.own_ranks import is_rank, leave_result, run_on_ranks
from megatron_sts.versions import check_versions


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="RECIPE.yaml")
    parser.add_argument("--stage", metavar="NAME", help="training stage (default: the last one)")
    parser.add_argument("--checkpoint", type=Path, help="weights to probe (default: those that the stage begins from)")
    parser.add_argument("--samples", type=positive, default=16, metavar="N", help="held-out samples (default 16)")
    parser.add_argument(
        "--budget", type=float, default=0.25, metavar="NATS", help="rise of the loss that is borne (default 0.25)"
    )
    parser.add_argument("--json", action="store_true", help="one json object on standard output instead of text")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write the json to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw a chart")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="e.g. parallel.tensor=2")
    return parser.parse_intermixed_args(arguments)


@command
def main(arguments: list[str] | None = None) -> int:
    """Parse, measure, print."""
    options = parse(arguments)
    before_heavy_imports()
    check_versions()
    recipe = load_recipe(options.config, options.overrides)
    stage = recipe.stage(options.stage or recipe.stages[-1].name)
    for option, file in (("--output", options.output), ("--plot", options.plot)):
        if file is not None and not file.parent.is_dir():
            raise ConfigError(f"{option} {file}: there is no directory {file.parent}; make it, or give another")
    if not is_rank():
        parallel = recipe.parallel
        ranks = parallel.tensor * parallel.pipeline * parallel.context
        code, result = run_on_ranks(Path(__file__).resolve(), sys.argv[1:] if arguments is None else arguments, ranks)
        if code == 0:
            print(result)
        return code

    from megatron_sts.evaluation.progress import shown_progress
    from megatron_sts.parallel.groups import start_groups, stop_groups, world_size_of_environment
    from megatron_sts.train.probe import Probe
    from megatron_sts.train.probe_report import as_json, plot, text
    from megatron_sts.train.resume import origin_of
    from megatron_sts.train.stage_data import StageData

    check_world(recipe, world_size_of_environment())
    place = start_groups(recipe.parallel, recipe.seed)
    speaks = place.rank == 0

    def say(line: str) -> None:
        if speaks:
            print(line, file=sys.stderr, flush=True)

    try:
        checkpoint = options.checkpoint or origin_of(recipe, recipe.stages.index(stage))
        origin = (
            checkpoint
            if checkpoint is not None
            else "fresh weights: what layers of a trained model are worth is not seen"
        )
        say(f"stage {stage.name}, {origin}")
        own = stage.skip_of("all") or stage.skip_of("visual")
        protect_above = (own or SkipConfig(alpha=0.0)).protect_above
        with redirect_stdout(sys.stderr):
            data = StageData(recipe, stage)
        probe = Probe(recipe, stage, data, checkpoint, place, options.samples)
        if speaks:
            with shown_progress("evaluations") as progress:
                found = probe.run(protect_above, say, progress)
        else:
            found = probe.run(protect_above, say)
    except KeyboardInterrupt:
        say("interrupted: nothing was written")
        return INTERRUPTED
    if speaks:
        written = as_json(found, options.budget)
        if options.plot is not None:
            plot(found, options.plot)
        if options.output is not None:
            options.output.write_text(written + "\n")
        leave_result(written if options.json else text(found, options.budget))
    stop_groups()
    return 0


if __name__ == "__main__":
    sys.exit(main())
