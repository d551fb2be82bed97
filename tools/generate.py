"""One answer of an exported model to a question about a picture.

python tools/generate.py --model DIR --image FILE --prompt TEXT
"""

import argparse
import sys
from pathlib import Path

from megatron_sts.data import IMAGE_TOKEN, Turn
from megatron_sts.errors import MegatronStsError
from megatron_sts.hf.generate import Generator, Request


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="exported model")
    parser.add_argument("--image", type=Path, required=True, help="picture")
    parser.add_argument("--prompt", required=True, help="question about the picture")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the GPU where there is one)")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = parse(arguments)
    picture = options.image.resolve()
    question = options.prompt.replace(IMAGE_TOKEN, "").strip()
    try:
        generator = Generator(options.model, options.device)
        prompt = generator.prompt([Turn("human", f"{IMAGE_TOKEN}\n{question}")])
        request = Request(prompt, (picture.name,))
        (answer,) = generator.generate([request], picture.parent, options.max_new_tokens)
    except MegatronStsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
