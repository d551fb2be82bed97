"""Accuracy of an exported model on questions with known answers.

python tools/evaluate.py --model DIR --data FILE [--images DIR] [--predictions FILE] [--json]

Formats: LLaVA's questions (exact match), POPE, ScienceQA. An interrupted evaluation with --predictions goes on
where it was when it is started again.
"""

import argparse
import json
import sys
from pathlib import Path

from megatron_sts.arguments import DTYPES, QUESTION_FORMATS, positive
from megatron_sts.command import command
from megatron_sts.exit_codes import INTERRUPTED
from megatron_sts.heavy_imports import before_heavy_imports


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="exported model")
    parser.add_argument("--data", type=Path, required=True, help="questions: a file, or a folder of POPE or ScienceQA")
    parser.add_argument("--format", choices=QUESTION_FORMATS, help="of the questions (default: told by what they hold)")
    parser.add_argument("--images", type=Path, help="image folder (default: beside --data, as the format has it)")
    parser.add_argument("--predictions", type=Path, help="keep the answers in this .jsonl file, and take them up again")
    parser.add_argument("--split", default="test", help="of ScienceQA (default: test)")
    parser.add_argument("--instruction", help='last line of every question (default: the format\'s; "": none)')
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the GPU where there is one)")
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="default: bfloat16 on a GPU, else float32"
    )
    parser.add_argument("--max-new-tokens", type=positive, default=128)
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--json", action="store_true", help="print one json object instead of a table")
    return parser.parse_args(arguments)


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    before_heavy_imports()
    # Takes seconds: not before the options are known to be right.
    from megatron_sts.evaluation import evaluate, format_table
    from megatron_sts.evaluation.progress import shown_progress

    try:
        with shown_progress("questions") as progress:
            result = evaluate(
                options.model,
                options.data,
                images=options.images,
                predictions=options.predictions,
                format_name=options.format,
                split=options.split,
                instruction=options.instruction,
                device=options.device,
                dtype=options.dtype,
                max_new_tokens=options.max_new_tokens,
                batch_size=options.batch_size,
                progress=progress,
            )
    except KeyboardInterrupt:
        kept = "nothing is kept without --predictions"
        if options.predictions is not None:
            kept = f"the answers so far are in {options.predictions}; the same command goes on from there"
        print(f"interrupted: {kept}", file=sys.stderr)
        return INTERRUPTED
    if options.json:
        print(json.dumps(result))
    else:
        print(f"format {result['format']} ({result['format_reason']}), in {result['dtype']}")
        print(format_table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
