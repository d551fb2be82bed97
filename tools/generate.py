"""Answers of an exported model to a question about one picture or several, each picture by itself.

python tools/generate.py --model DIR --prompt TEXT [--image FILE ...]
"""

import argparse
import json
import os
import sys
from pathlib import Path

from megatron_sts.arguments import DTYPES, positive
from megatron_sts.command import command
from megatron_sts.errors import DataError
from megatron_sts.heavy_imports import before_heavy_imports


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="exported model")
    parser.add_argument("--image", type=Path, nargs="+", default=[], help="pictures, asked about one by one")
    parser.add_argument("--prompt", required=True, help="question")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the GPU where there is one)")
    parser.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="default: bfloat16 on a GPU, else float32"
    )
    parser.add_argument("--max-new-tokens", type=positive, default=256)
    parser.add_argument("--batch-size", type=positive, default=16)
    parser.add_argument("--json", action="store_true", help="print one json object an answer")
    return parser.parse_args(arguments)


def answers(options: argparse.Namespace) -> list[str]:
    """One answer for each picture, or one without; DataError where one is not there, before the model is loaded."""
    for image in options.image:
        if not image.is_file():
            raise DataError(f"--image {image}: no such file")
    # Takes seconds: not before the options are known to be right.
    from megatron_sts.data import IMAGE_TOKEN, Turn
    from megatron_sts.evaluation.generate import Generator, Request
    from megatron_sts.evaluation.progress import shown_progress

    generator = Generator(options.model, options.device, options.dtype)
    question = options.prompt.replace(IMAGE_TOKEN, "").strip()
    if not options.image:
        requests, root = [Request(generator.prompt([Turn("human", question)]))], Path()
    else:
        prompt = generator.prompt([Turn("human", f"{IMAGE_TOKEN}\n{question}")])
        pictures = [image.resolve() for image in options.image]
        root = Path(os.path.commonpath([picture.parent for picture in pictures]))
        requests = [Request(prompt, (str(picture.relative_to(root)),)) for picture in pictures]
    if len(requests) == 1:
        return generator.generate(requests, root, options.max_new_tokens)
    with shown_progress("answers") as progress:
        return generator.generate(requests, root, options.max_new_tokens, options.batch_size, progress)


@command
def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    before_heavy_imports()
    found = answers(options)
    for image, answer in zip(options.image or [None], found, strict=True):
        if options.json:
            print(json.dumps({"image": None if image is None else str(image), "text": answer}, ensure_ascii=False))
        else:
            print(answer if len(found) == 1 else f"{image}: {answer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
