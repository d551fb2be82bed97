"""Looks after checkpoints: `python tools/checkpoint.py list|verify|prune DIR`."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from megatron_sts.arguments import positive
from megatron_sts.command import command
from megatron_sts.config import ListedCheckpoint, list_checkpoints, prune


@command
def main() -> int:
    """Parse, look, print; 1 where a checkpoint is not whole."""
    arguments = _parser().parse_args()
    if arguments.command == "prune":
        return _prune(arguments)
    listed = list_checkpoints(arguments.directory, hashes=arguments.command == "verify")
    if arguments.json:
        print(json.dumps([_record(checkpoint) for checkpoint in listed], indent=1))
    else:
        _print_table(listed, verified=arguments.command == "verify")
    return 1 if any(checkpoint.problems for checkpoint in listed) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Looks after the checkpoints of a run.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("list", "what there is; compares names and sizes of files, reads none"),
        ("verify", "reads every file and compares it with the manifest"),
        ("prune", "removes the checkpoints that need not be kept"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("directory", type=Path, metavar="DIR", help="output_dir, its checkpoints, or one of them")
        command.add_argument("--json", action="store_true", help="json instead of text")
    command.add_argument("--keep-last", type=positive, default=2, metavar="N", help="of each stage (default 2)")
    command.add_argument("--keep-every", type=positive, metavar="M", help="also every step that is a multiple of M")
    command.add_argument("--dry-run", action="store_true", help="only show what would be removed")
    return parser


def _prune(arguments: argparse.Namespace) -> int:
    removed = prune(arguments.directory, arguments.keep_last, arguments.keep_every, arguments.dry_run)
    if arguments.json:
        print(json.dumps([str(path) for path in removed], indent=1))
        return 0
    for path in removed:
        print(f"{'would remove' if arguments.dry_run else 'removed'} {path}")
    if not removed:
        print("nothing to remove")
    return 0


def _record(checkpoint: ListedCheckpoint) -> dict[str, object]:
    return {
        "path": str(checkpoint.path),
        "stage": checkpoint.stage,
        "step": checkpoint.step,
        "bytes": checkpoint.bytes,
        "age_s": round(checkpoint.age),
        "latest": checkpoint.is_latest,
        "best": checkpoint.is_best,
        "validation_loss": checkpoint.validation_loss,
        "whole": not checkpoint.problems,
        "problems": list(checkpoint.problems),
    }


def _print_table(listed: list[ListedCheckpoint], verified: bool) -> None:
    shows_loss = any(checkpoint.validation_loss is not None for checkpoint in listed)
    table = Table("checkpoint", "stage", "step", "size", "age", *(["validation"] if shows_loss else []), "state")
    for checkpoint in listed:
        state = "damaged" if checkpoint.problems else "whole" if verified else "sizes agree"
        loss = "" if checkpoint.validation_loss is None else f"{checkpoint.validation_loss:.4f}"
        marks = [name for name, holds in (("latest", checkpoint.is_latest), ("best", checkpoint.is_best)) if holds]
        table.add_row(
            checkpoint.path.name + (f" ({', '.join(marks)})" if marks else ""),
            checkpoint.stage,
            "?" if checkpoint.step is None else str(checkpoint.step),
            decimal(checkpoint.bytes),
            _age(checkpoint.age),
            *([loss] if shows_loss else []),
            state,
        )
    Console().print(table)
    for checkpoint in listed:
        for problem in checkpoint.problems:
            print(problem, file=sys.stderr)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
