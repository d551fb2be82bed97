"""Composes the example's images: real handwritten digits in colored ink on colored paper, with captions and questions.

    load_digits (8x8 scans) -> 56 px, alone; or 28 px, two side by side -> an image of 56x56 px

With patches of 14 px that is 4x4 visual tokens. Training images are made of the first 80% of the scans, validation and
test images of the rest. Every image is a pure function of (split, index, seed).

    one digit    Which digit is it?  What color is the digit?  What color is the paper?  Is the digit even?
    two digits   Which digit is on the left (right)?  What color is the digit on the left (right)?
    both         How many digits are there?

Every word of an answer is one token of SmolLM2. Written below the output directory; image paths are relative to it:

    images/SPLIT/*.png
    align.json                 LLaVA json: one caption an image
    tune.json                  LLaVA json: some questions an image
    validation.json, test_questions.jsonl   the same of other scans: to choose settings with, and to report
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.questions import Question, question_rows, record, write_records, write_rows
from common.scans import NUMBER_WORDS, SPLIT_NUMBERS, Split, held_out_scans, scans, scans_of

IMAGE_SIZE = 56
INKS = {"black": (20, 20, 20), "red": (200, 25, 25), "green": (20, 140, 40), "blue": (25, 50, 210)}
PAPERS = {"white": (248, 248, 248), "yellow": (250, 225, 90), "gray": (165, 165, 165), "orange": (250, 160, 60)}
JITTER = 12
CAPTION_REQUEST = "Describe the image."


@dataclass(frozen=True)
class Composition:
    """One image: its scans (numbers in load_digits), the digits and their inks from left to right, the paper."""

    scans: tuple[int, ...]
    digits: tuple[str, ...]
    inks: tuple[str, ...]
    paper: str
    jitter: np.ndarray
    """Added to the color of the paper and of each ink, float [1 + digits, 3]."""


def compose(split: Split, index: int, seed: int) -> tuple[Composition, np.random.Generator]:
    """Image number `index` of a split, and the generator that its questions are drawn from."""
    rng = np.random.default_rng([seed, SPLIT_NUMBERS[split], index])
    labels = scans()[1]
    # Contract: examples/study/results.jsonl was measured on these test images.
    allowed = scans_of("train") if split == "train" else held_out_scans()
    count = int(rng.integers(1, 3))
    chosen = tuple(int(number) for number in rng.integers(allowed.start, allowed.stop, size=count))
    return (
        Composition(
            scans=chosen,
            digits=tuple(NUMBER_WORDS[labels[number]] for number in chosen),
            inks=tuple(str(ink) for ink in rng.choice(list(INKS), size=count)),
            paper=str(rng.choice(list(PAPERS))),
            jitter=rng.uniform(-JITTER, JITTER, size=(1 + count, 3)),
        ),
        rng,
    )


def render(composition: Composition) -> np.ndarray:
    """The image as uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3))
    canvas[:] = np.array(PAPERS[composition.paper]) + composition.jitter[0]
    side = IMAGE_SIZE // len(composition.scans)
    top = (IMAGE_SIZE - side) // 2
    for place, (scan, ink) in enumerate(zip(composition.scans, composition.inks, strict=True)):
        resized = Image.fromarray(scans()[0][scan]).resize((side, side), Image.Resampling.BICUBIC)
        coverage = np.asarray(resized, dtype=np.float64)[:, :, None] / 255
        tile = canvas[top : top + side, place * side : (place + 1) * side]
        tile[:] = (1 - coverage) * tile + coverage * (np.array(INKS[ink]) + composition.jitter[1 + place])
    return canvas.clip(0, 255).round().astype(np.uint8)


def caption(composition: Composition) -> str:
    """`A red five and a blue two on white paper.`"""
    digits = (f"a {ink} {digit}" for ink, digit in zip(composition.inks, composition.digits, strict=True))
    text = f"{' and '.join(digits)} on {composition.paper} paper."
    return text[0].upper() + text[1:]


def possible_questions(composition: Composition) -> list[Question]:
    """Everything that is asked about an image."""
    digits, inks = composition.digits, composition.inks
    asked = [
        Question("What color is the paper?", composition.paper, "paper"),
        Question("How many digits are there?", NUMBER_WORDS[len(digits)], "count"),
    ]
    if len(digits) == 1:
        even = "yes" if NUMBER_WORDS.index(digits[0]) % 2 == 0 else "no"
        return [
            Question("Which digit is it?", digits[0], "digit"),
            Question("What color is the digit?", inks[0], "ink"),
            Question("Is the digit even?", even, "even"),
            *asked,
        ]
    for side, digit, ink in zip(("left", "right"), digits, inks, strict=True):
        asked.append(Question(f"Which digit is on the {side}?", digit, "digit of two"))
        asked.append(Question(f"What color is the digit on the {side}?", ink, "ink of two"))
    return asked


def draw_questions(composition: Composition, rng: np.random.Generator, count: int) -> list[Question]:
    """`count` different questions about an image."""
    asked = possible_questions(composition)
    return [asked[number] for number in rng.permutation(len(asked))[:count]]


def write_dataset(output: Path, counts: dict[Split, int], questions: int, seed: int) -> None:
    """Write counts[split] images of each split with `questions` questions each, in the files listed at the top."""
    records: dict[str, list[dict[str, Any]]] = {"align": [], "tune": [], "validation": []}
    test: list[dict[str, str]] = []
    for split, count in counts.items():
        (output / "images" / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            composition, rng = compose(split, index, seed)
            path, name = f"images/{split}/{index:06d}.png", f"{split}-{index:06d}"
            Image.fromarray(render(composition)).save(output / path, compress_level=1)
            asked = draw_questions(composition, rng, questions)
            if split == "test":
                test += question_rows(name, path, asked)
            else:
                pairs = [(question.text, question.answer) for question in asked]
                records["tune" if split == "train" else "validation"].append(record(name, path, pairs))
            if split == "train":
                records["align"].append(record(name, path, [(CAPTION_REQUEST, caption(composition))]))
    for name, rows in records.items():
        write_records(output / f"{name}.json", rows)
    write_rows(output / "test_questions.jsonl", test)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description="Compose the example's images, captions and questions.")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--train", type=int, default=8000, help="training images (default: %(default)s)")
    parser.add_argument("--test", type=int, default=200, help="validation and test images each (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=2, help="questions an image (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args(arguments)
    counts: dict[Split, int] = {"train": options.train, "validation": options.test, "test": options.test}
    write_dataset(options.output, counts, options.questions, options.seed)
    print(f"composed {options.train} training images, {options.test} to validate and {options.test} to test with")


if __name__ == "__main__":
    main()
