"""Looks at data before it is trained on, and packs it.

python tools/prepare_data.py check DATA.json --images DIR
python tools/prepare_data.py check --config RECIPE.yaml [--stage NAME] [key.sub=value ...]
python tools/prepare_data.py check DATA.json --images DIR --tokenizer DIR --vision DIR [--template NAME]
python tools/prepare_data.py pack DATA.json --images DIR --output DIR

The first form reads records and images, the next two count tokens too: as a recipe's stages would, or with settings of
their own. `--usable FILE` writes the records that can be trained on to a file of their own. The last writes webdataset
shards. Exit code: 0 where every record can be trained on, 1 where some cannot, 2 where nothing could be checked or
packed.
"""

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

# The tokenizer's threads and the worker processes would get in each other's way.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from megatron_sts.arguments import positive
from megatron_sts.command import command
from megatron_sts.config import DataConfig, keys_of_stage, load_recipe
from megatron_sts.errors import ConfigError
from megatron_sts.heavy_imports import before_heavy_imports

if TYPE_CHECKING:
    from megatron_sts.data.workers import StartProgress


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="what is in a data file, and what is wrong with it")
    check.add_argument("given", nargs="*", metavar="DATA.json", help="default: the data of the recipe's stages")
    check.add_argument("--images", type=Path, metavar="DIR", help="folder that the images' paths start from")
    check.add_argument("--config", metavar="RECIPE.yaml", help="count tokens as this recipe's stages do")
    check.add_argument("--stage", metavar="NAME", help="of the recipe (default: those that read DATA.json, else all)")
    check.add_argument("--tokenizer", type=Path, metavar="DIR", help="count tokens without a recipe")
    check.add_argument("--vision", type=Path, metavar="DIR", help="tower that says how many tokens an image is")
    templates = get_args(DataConfig.model_fields["template"].annotation)
    check.add_argument("--template", choices=templates, default=DataConfig.model_fields["template"].default)
    check.add_argument(
        "--max-tokens", type=positive, default=DataConfig.model_fields["max_tokens"].default, metavar="N"
    )
    check.add_argument("--no-decode", action="store_true", help="look only whether the image files are there")
    check.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="processes")
    check.add_argument("--usable", type=Path, metavar="FILE", help="write the usable records there; must not exist yet")
    check.add_argument("--json", action="store_true", help="one json object for each stage, with every problem")
    packing = commands.add_parser("pack", help="write webdataset shards, which megatron-energon reads too")
    packing.add_argument("data", type=Path, metavar="DATA.json")
    packing.add_argument("--images", type=Path, metavar="DIR", help="folder that the images' paths start from")
    packing.add_argument("--output", type=Path, required=True, metavar="DIR", help="must not exist yet")
    packing.add_argument("--shard-size", type=float, default=512, metavar="MB", help="of a shard, in 10^6 bytes")
    # argparse takes positional arguments in one place only; overrides may stand behind the options.
    options, behind = parser.parse_known_args(arguments)
    if options.command == "pack":
        if behind or options.shard_size <= 0:
            parser.error(f"unrecognized arguments: {' '.join(behind)}" if behind else "--shard-size: give 1 or more")
        return options
    if unknown := [text for text in behind if text.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    given = [*options.given, *behind]
    options.overrides = [text for text in given if options.config is not None and "=" in text]
    files = [Path(text) for text in given if text not in options.overrides]
    if len(files) > 1 or (not files and options.config is None):
        parser.error(f"give one DATA.json, or --config; found {len(files)} files")
    options.data = files[0] if files else None
    if options.config is None and options.stage is not None:
        parser.error("--stage belongs to a recipe; give --config")
    if (options.tokenizer is None) != (options.vision is None) or (options.config and options.tokenizer):
        parser.error("give --tokenizer and --vision together, and not with --config")
    return options


def reports(options: argparse.Namespace, progress: "StartProgress") -> list[dict[str, Any]]:
    """One report for each stage that is checked, or one."""
    # Takes seconds: not before the options are known to be right.
    from megatron_sts.data import find_template
    from megatron_sts.data.check import check_data
    from megatron_sts.data.check_lengths import TextSettings
    from megatron_sts.data.check_stage import check_stage_data, stages_to_check

    decodes, workers = not options.no_decode, max(0, options.workers)
    if options.config is not None:
        recipe = load_recipe(options.config, options.overrides, check_files=False)
        stages = stages_to_check(recipe, options.stage, options.data)
        if options.usable is not None and len(stages) > 1:
            names = ", ".join(stage.name for stage in stages)
            raise ConfigError(f"--usable: takes the records of one stage, found {names}; choose one with --stage")
        found = []
        for stage in stages:
            given = (options.data, options.images, decodes, workers, progress, options.usable)
            with keys_of_stage(stage.name):
                found.append(check_stage_data(recipe, stage, *given))
        return found
    text = None
    if options.tokenizer is not None:
        from megatron_sts.hf.read_config import read_vision_config, vision_architecture
        from megatron_sts.hf.tokenizer import give_image_token, read_tokenizer

        tokenizer = read_tokenizer(options.tokenizer)
        added = give_image_token(tokenizer)
        tower = vision_architecture(read_vision_config(options.vision), options.vision)
        template = find_template(options.template, tokenizer)
        visual_tokens = (tower.patches, tower.patches)
        text = TextSettings(
            tokenizer, template, None, *visual_tokens, options.max_tokens, "error", image_token_added=added
        )
    return [check_data(options.data, options.images, text, False, decodes, workers, progress, options.usable)]


def pack_shards(options: argparse.Namespace) -> None:
    """Pack the data and say what was written."""
    from megatron_sts.data.pack import pack
    from megatron_sts.evaluation.progress import shown_progress

    with shown_progress("packing") as progress:
        packed = pack(options.data, options.images, options.output, int(options.shard_size * 1e6), progress)
    print(
        f"{options.output}: {sum(packed.shards.values()):,} records with {packed.images:,} images in "
        f"{len(packed.shards):,} shards, {packed.bytes / 1e6:,.1f} MB"
    )


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    before_heavy_imports()
    if options.command == "pack":
        pack_shards(options)
        return 0
    from megatron_sts.data.check_text import check_text
    from megatron_sts.evaluation.progress import shown_if_long

    with ExitStack() as stack:
        found = reports(options, lambda what: stack.enter_context(shown_if_long(what)))
    for report in found:
        if options.json:
            print(json.dumps(report))
        else:
            stage = f"stage {report['stage']}, " if "stage" in report else ""
            print(stage + check_text(report))
            if options.usable is not None:
                print(f"{options.usable}: the {report['usable']:,} usable records")
    return int(any(report["usable"] < report["records"] for report in found))


if __name__ == "__main__":
    sys.exit(main())
