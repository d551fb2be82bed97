"""Converts between training checkpoints and Hugging Face models.

python tools/convert.py export --checkpoint CHECKPOINT --output DIR [--verify]
"""

import argparse
import sys
from pathlib import Path

from megatron_sts.errors import MegatronStsError
from megatron_sts.hf.export import DTYPES, export_checkpoint
from megatron_sts.hf.verify import verify_export


def export(options: argparse.Namespace) -> None:
    """Export, say what was written, and verify it where that was asked for."""
    dtype = DTYPES[options.dtype] if options.dtype else None
    report = export_checkpoint(options.checkpoint, options.output, options.vision, options.tokenizer, dtype)
    print(
        f"{report.output}: {report.tensors} tensors, {report.parameters:,} parameters, "
        f"{report.weight_bytes:,} bytes in {len(report.weight_files)} file(s), {report.dtype}; "
        f"stage {report.stage}, step {report.step}"
    )
    if report.dropped:
        print(f"left out, as no LLaVA model uses it: {', '.join(report.dropped)}")
    if options.verify:
        verify_export(options.output)
        print("verified: it loads with nothing missing or unexpected, and runs")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    exporter = commands.add_parser("export", help="make a Hugging Face LLaVA model of a training checkpoint")
    exporter.add_argument("--checkpoint", type=Path, required=True, help="directory with run.json")
    exporter.add_argument("--output", type=Path, required=True, help="directory to make")
    exporter.add_argument("--vision", type=Path, help="vision encoder directory (default: the recipe's)")
    exporter.add_argument("--tokenizer", type=Path, help="tokenizer directory (default: the recipe's)")
    exporter.add_argument("--dtype", choices=DTYPES, help="of the weights (default: the recipe's precision)")
    exporter.add_argument("--verify", action="store_true", help="load and run the model afterwards")
    exporter.set_defaults(run=export)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    try:
        options.run(options)
    except MegatronStsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
