"""Converts between training checkpoints and Hugging Face models.

python tools/convert.py import --vision DIR --language DIR --output CHECKPOINT [--recipe RECIPE.yaml]
python tools/convert.py import --hf DIR --output CHECKPOINT
python tools/convert.py import --vision DIR --megatron DIR --output CHECKPOINT --recipe RECIPE.yaml
python tools/convert.py export --checkpoint CHECKPOINT --output DIR [--verify]
python tools/convert.py export --checkpoint RUN --best --output DIR [--verify]
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from megatron_sts.arguments import DTYPES
from megatron_sts.command import command
from megatron_sts.config import best_checkpoint, load_recipe
from megatron_sts.errors import ConversionError
from megatron_sts.heavy_imports import before_heavy_imports


def import_weights(options: argparse.Namespace) -> None:
    """Import, and say what became of every tensor."""
    # Takes seconds: not before the options are known to be right.
    import torch

    from megatron_sts.hf.importer import ImportOptions, import_llava, import_megatron, import_pair

    recipe = load_recipe(options.recipe, check_files=False) if options.recipe else None
    dtype = getattr(torch, options.dtype) if options.dtype else None
    chosen = ImportOptions(options.tokenizer, recipe, dtype, options.allow_pickle)
    given = tuple(name for name in ("hf", "vision", "language", "megatron") if getattr(options, name) is not None)
    with _bar("import") as start:
        if given == ("hf",):
            report = import_llava(options.hf, options.output, chosen, start)
        elif given == ("vision", "language"):
            report = import_pair(options.vision, options.language, options.output, chosen, start)
        elif given == ("vision", "megatron"):
            report = import_megatron(options.vision, options.megatron, options.output, chosen, start)
        else:
            raise ConversionError(
                f"import was given {', '.join(f'--{name}' for name in given) or 'no source'}; give --hf, or --vision "
                "with --language, or --vision with --megatron"
            )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{options.output}: {report.summary()}; each is in {options.output / 'tensors.json'}")
    print(f"name it in a recipe as  model: {{init: {options.output}}}")


def export(options: argparse.Namespace) -> None:
    """Export, say what was written, and verify it where that was asked for."""
    import torch

    from megatron_sts.hf.export import export_checkpoint
    from megatron_sts.hf.verify import verify_export

    dtype = getattr(torch, options.dtype) if options.dtype else None
    checkpoint = best_checkpoint(options.checkpoint) if options.best else options.checkpoint
    with _bar("export") as start:
        report = export_checkpoint(checkpoint, options.output, options.vision, options.tokenizer, dtype, start=start)
    print(
        f"{report.output}: {report.tensors} tensors, {report.parameters:,} parameters, "
        f"{report.weight_bytes:,} bytes in {len(report.weight_files)} file(s), {report.dtype}; "
        f"stage {report.stage}, step {report.step}"
    )
    print(f"{report.details.summary()}; each is in {report.output / 'tensors.json'}")
    if options.verify:
        print(verify_export(options.output, checkpoint, was_cast=dtype is not None).text())


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
    """A progress bar on standard error: a function of the bytes there are, which gives one of the bytes just done."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))

    def start(total: int) -> Callable[[int], None]:
        task = progress.add_task(what, total=total)
        progress.start()
        return lambda done: progress.advance(task, done)

    try:
        yield start
    finally:
        if progress.tasks:
            progress.stop()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    importer = commands.add_parser(
        "import", help="make a checkpoint to start from, of Hugging Face or Megatron weights"
    )
    importer.add_argument("--hf", type=Path, help="a LlavaForConditionalGeneration directory")
    importer.add_argument("--vision", type=Path, help="a CLIP, SigLIP, SigLIP2 or DINOv2 directory")
    importer.add_argument("--language", type=Path, help="a language model's directory")
    importer.add_argument("--megatron", type=Path, help="a distributed checkpoint of Megatron-LM or Megatron-Bridge")
    importer.add_argument("--output", type=Path, required=True, help="checkpoint directory to make")
    importer.add_argument("--recipe", type=Path, help="recipe whose architecture the weights must have")
    importer.add_argument("--tokenizer", type=Path, help="tokenizer directory (default: the language model's)")
    importer.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    importer.add_argument("--allow-pickle", action="store_true", help="also read pytorch_model.bin, with weights_only")
    importer.set_defaults(run=import_weights)
    exporter = commands.add_parser("export", help="make a Hugging Face LLaVA model of a checkpoint")
    exporter.add_argument("--checkpoint", type=Path, required=True, help="directory with run.json")
    exporter.add_argument(
        "--best", action="store_true", help="--checkpoint is a run's output_dir: take its lowest validation loss"
    )
    exporter.add_argument("--output", type=Path, required=True, help="directory to make")
    exporter.add_argument("--vision", type=Path, help="vision encoder directory (default: the recipe's)")
    exporter.add_argument("--tokenizer", type=Path, help="tokenizer directory (default: the recipe's)")
    exporter.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    exporter.add_argument(
        "--verify", action="store_true", help="load the model afterwards, compare its logits with the checkpoint's"
    )
    exporter.set_defaults(run=export)
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    before_heavy_imports()
    options.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
