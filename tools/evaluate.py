"""Exact-match accuracy of an exported model on LLaVA-format questions.

python tools/evaluate.py --model DIR --data FILE [--images DIR] [--predictions FILE] [--json]
"""

import argparse
import json
import sys
from pathlib import Path

from megatron_sts.errors import MegatronStsError
from megatron_sts.hf.evaluate import evaluate, format_table


def show_progress(done: int, total: int) -> None:
    """How far it is, on standard error: one line that is rewritten on a terminal, else a line a batch."""
    terminal = sys.stderr.isatty()
    end = "\n" if done == total or not terminal else ""
    print(f"{chr(13) if terminal else ''}{done} of {total} questions", end=end, file=sys.stderr, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="exported model")
    parser.add_argument("--data", type=Path, required=True, help="questions: .json or .jsonl")
    parser.add_argument("--images", type=Path, help="image folder (default: the folder of --data)")
    parser.add_argument("--predictions", type=Path, help="write the answers to this .jsonl file")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the GPU where there is one)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one json object instead of a table")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    try:
        result = evaluate(
            options.model,
            options.data,
            images=options.images,
            predictions=options.predictions,
            device=options.device,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            progress=show_progress,
        )
    except MegatronStsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result) if options.json else format_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
