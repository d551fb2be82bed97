"""Composes the quickstart's data set: grids of real handwritten digits, with captions and questions.

    load_digits (8x8 scans) -> tiles of 24x24 px -> 2x2, 2x3, 3x2 or 3x3 tiles on an image of 84x84 px

The image is a lattice of 3x3 cells of 28 px; smaller grids fill it from the top left. A cell is exactly
2x2 patches of 14 px, so a vision tower with that patch size sees a digit in four whole patches, and row R,
column C lies on the same patches in every image. Training, validation and test images are made of other scans.
Every image, with its questions, is a pure function of (split, index, seed).

Questions are drawn from this mixture (QUESTION_MIXTURE); one that the image already has is drawn again:

    read 45%    Which digit is in row one, column two?      five
    row 25%     Which digits are in row two?                three nine
    column 25%  Which digits are in column one?             five three zero
    total 5%    How many digits are there in total?         six

Written below the output directory; image paths in the json files are relative to it:

    images/SPLIT/*.png
    pretrain.json         LLaVA json without images: text for the language model, the training images
                          written in words, with captions and questions
    align.json            LLaVA json: one caption an image
    tune.json             LLaVA json: a question about an image, several records an image
    validation.json       the same of other scans, to choose settings with
    test_questions.jsonl  question_id, image, text, answer, category
    tiles.npz             train [n, 9], test [m, 9]: the digit of each cell, row by row; BLANK_CELL for none
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common.questions import Question, conversation, question_rows, record, write_records, write_rows
from common.scans import NUMBER_WORDS, SPLIT_NUMBERS, Split, scans, scans_of

Grid = tuple[tuple[int, ...], ...]

IMAGE_SIZE = 84
CELLS_PER_SIDE = 3
CELL_SIZE = IMAGE_SIZE // CELLS_PER_SIDE
TILE_SIZE = 24
BLANK_CELL = 10
GRID_SHAPES = ((2, 2), (2, 3), (3, 2), (3, 3))
# A 2x2 grid has 9 different questions; drawing without repetition must end.
MOST_QUESTIONS = 8
CAPTION_REQUEST = "Describe the image."
QUESTION_MIXTURE = {"read": 0.45, "row": 0.25, "column": 0.25, "total": 0.05}


@dataclass(frozen=True)
class Composition:
    """One image: which scan stands where, in which colors, and what is asked about it."""

    grid: Grid
    """The digits, row by row."""
    scans: tuple[tuple[int, ...], ...]
    """Numbers of the scans in load_digits, laid out like `grid`."""
    paper: np.ndarray
    """Background color, float [3], 0..255."""
    inks: np.ndarray
    """Color of each digit, float [rows, columns, 3], 0..255."""
    questions: tuple[Question, ...]


def compose(split: Split, index: int, seed: int, questions: int) -> Composition:
    """Image number `index` of a split, the same whenever and in whatever order it is asked for."""
    rng = np.random.default_rng([seed, SPLIT_NUMBERS[split], index])
    rows, columns = GRID_SHAPES[rng.integers(len(GRID_SHAPES))]
    allowed = scans_of(split)
    chosen = rng.integers(allowed.start, allowed.stop, size=(rows, columns))
    labels = scans()[1][chosen]
    grid = tuple(tuple(int(digit) for digit in row) for row in labels)
    return Composition(
        grid=grid,
        scans=tuple(tuple(int(number) for number in row) for row in chosen),
        paper=rng.uniform(190, 255, size=3),
        inks=rng.uniform(0, 110, size=(rows, columns, 3)),
        questions=draw_questions(grid, rng, questions),
    )


def render(composition: Composition) -> np.ndarray:
    """The image as uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3))
    canvas[:] = composition.paper
    margin = (CELL_SIZE - TILE_SIZE) // 2
    for row, numbers in enumerate(composition.scans):
        for column, number in enumerate(numbers):
            top, left = row * CELL_SIZE + margin, column * CELL_SIZE + margin
            scan = Image.fromarray(scans()[0][number]).resize((TILE_SIZE, TILE_SIZE), Image.Resampling.BICUBIC)
            ink = np.asarray(scan, dtype=np.float64)[:, :, None] / 255
            tile = canvas[top : top + TILE_SIZE, left : left + TILE_SIZE]
            tile[:] = (1 - ink) * tile + ink * composition.inks[row, column]
    return canvas.round().astype(np.uint8)


def caption(grid: Grid) -> str:
    """`Row one: five zero. Row two: three four.`"""
    return " ".join(f"Row {NUMBER_WORDS[number]}: {_spell(row)}." for number, row in enumerate(grid, start=1))


def draw_questions(grid: Grid, rng: np.random.Generator, count: int) -> tuple[Question, ...]:
    """`count` different questions about a grid, categories drawn from QUESTION_MIXTURE."""
    categories = tuple(QUESTION_MIXTURE)
    weights = tuple(QUESTION_MIXTURE.values())
    drawn: dict[str, Question] = {}
    while len(drawn) < count:
        question = ask(grid, categories[rng.choice(len(categories), p=weights)], rng)
        drawn.setdefault(question.text, question)
    return tuple(drawn.values())


def ask(grid: Grid, category: str, rng: np.random.Generator) -> Question:
    """A question of one category about a grid, with its true answer."""
    row, column = int(rng.integers(len(grid))), int(rng.integers(len(grid[0])))
    row_word, column_word = NUMBER_WORDS[row + 1], NUMBER_WORDS[column + 1]
    match category:
        case "read":
            text = f"Which digit is in row {row_word}, column {column_word}?"
            answer = NUMBER_WORDS[grid[row][column]]
        case "row":
            text, answer = f"Which digits are in row {row_word}?", _spell(grid[row])
        case "column":
            text = f"Which digits are in column {column_word}?"
            answer = _spell(line[column] for line in grid)
        case "total":
            text, answer = "How many digits are there in total?", NUMBER_WORDS[len(grid) * len(grid[0])]
        case _:
            raise AssertionError(f"no such category of question: {category}")
    return Question(text, answer, category)


def image_path(split: Split, index: int) -> str:
    """Path of an image below the data set's directory."""
    return f"images/{split}/{index:06d}.png"


def cell_labels(grid: Grid) -> np.ndarray:
    """The lattice's cells row by row, uint8 [9], BLANK_CELL outside the grid."""
    cells = np.full((CELLS_PER_SIDE, CELLS_PER_SIDE), BLANK_CELL, dtype=np.uint8)
    cells[: len(grid), : len(grid[0])] = grid
    return cells.reshape(-1)


def written_image(grid: Grid, columns: int) -> str:
    """The image in words, patch by patch as a tower yields them: six lines of `columns` (6 or 3) words.

    With three columns every second patch is left out, which is what uniform compression to a half keeps.
    """
    words = (*NUMBER_WORDS, "blank")
    lattice = cell_labels(grid).reshape(CELLS_PER_SIDE, CELLS_PER_SIDE)
    lines = np.repeat(np.repeat(lattice, 2, axis=0), columns // CELLS_PER_SIDE, axis=1)
    return " ".join(words[cell] for cell in lines.reshape(-1))


def write_dataset(output: Path, counts: dict[Split, int], questions: int, seed: int) -> None:
    """Write counts[split] images of each split with `questions` questions each, in the files listed at the top."""
    composed: dict[Split, list[Composition]] = {}
    for split, count in counts.items():
        composed[split] = [compose(split, index, seed, questions) for index in range(count)]
        (output / "images" / split).mkdir(parents=True, exist_ok=True)
        for index, composition in enumerate(composed[split]):
            # The least compression: 4,000 files are written in seconds and still take little room.
            Image.fromarray(render(composition)).save(output / image_path(split, index), compress_level=1)
    train = list(enumerate(composed["train"]))
    write_records(output / "pretrain.json", (_pretrain_record(number, each) for number, each in train))
    write_records(
        output / "align.json",
        (_record("align", "train", number, [(CAPTION_REQUEST, caption(each.grid))]) for number, each in train),
    )
    write_records(output / "tune.json", _question_records("tune", "train", composed["train"]))
    write_records(output / "validation.json", _question_records("validation", "validation", composed["validation"]))
    write_rows(
        output / "test_questions.jsonl",
        (
            row
            for number, each in enumerate(composed["test"])
            for row in question_rows(f"test-{number:06d}", image_path("test", number), each.questions)
        ),
    )
    cells = {split: np.stack([cell_labels(each.grid) for each in composed[split]]) for split in ("train", "test")}
    np.savez_compressed(output / "tiles.npz", **cells)


def _spell(digits: Iterable[int]) -> str:
    return " ".join(NUMBER_WORDS[digit] for digit in digits)


def _exchanges(composition: Composition) -> list[tuple[str, str]]:
    return [(question.text, question.answer) for question in composition.questions]


def _record(name: str, split: Split, index: int, exchanges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return record(f"{name}-{index:06d}", image_path(split, index), exchanges)


def _question_records(name: str, split: Split, composed: Iterable[Composition]) -> Iterator[dict[str, Any]]:
    """A record for each question: 36 visual tokens and some 19 of text, about the share of LLaVA's 576 and 340."""
    for index, composition in enumerate(composed):
        for number, exchange in enumerate(_exchanges(composition)):
            yield _record(f"{name}-{number}", split, index, [exchange])


def _pretrain_record(index: int, composition: Composition) -> dict[str, Any]:
    # A language model that starts a LLaVA can read before it sees: here, a grid that is written in words.
    exchanges = [(CAPTION_REQUEST, caption(composition.grid)), *_exchanges(composition)]
    first = index % 2
    written = written_image(composition.grid, columns=6 if index % 4 < 2 else 3)
    # Every second record is asked at once, as the tuning data does, without a caption to copy from.
    (question, answer), *rest = exchanges[first:]
    turns = conversation([(f"{written}\n{question}", answer), *rest], has_image=False)
    return {"id": f"pretrain-{index:06d}", "conversations": turns}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the data set."""
    parser = argparse.ArgumentParser(description="Compose the quickstart's images, captions and questions.")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--train", type=int, default=4000, help="training images (default: %(default)s)")
    parser.add_argument("--test", type=int, default=250, help="validation and test images each (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=6, help="questions an image (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1234)
    options = parser.parse_args(arguments)
    if min(options.train, options.test) < 1 or not 1 <= options.questions <= MOST_QUESTIONS:
        parser.error(f"--train and --test must be at least 1, --questions from 1 to {MOST_QUESTIONS}")
    begin = time.perf_counter()
    counts: dict[Split, int] = {"train": options.train, "validation": options.test, "test": options.test}
    write_dataset(options.output, counts, options.questions, options.seed)
    print(
        f"composed {options.train} training images, {options.test} to validate and {options.test} to test with, "
        f"{options.test * options.questions} test questions, in {time.perf_counter() - begin:.1f} s"
    )


if __name__ == "__main__":
    main()
