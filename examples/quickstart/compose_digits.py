"""Composes the quickstart's data set: grids of real handwritten digits, with captions and questions.

    load_digits (8x8 scans) -> tiles of 24x24 px -> 2x2, 2x3, 3x2 or 3x3 tiles on a picture of 84x84 px

The picture is a lattice of 3x3 cells of 28 px; smaller grids fill it from the top left. A cell is exactly
2x2 patches of 14 px, so a vision tower with that patch size sees a digit in four whole patches, and row R,
column C lies on the same patches in every picture. Training pictures are made of the first 80% of the scans
and test pictures of the rest. Every picture, with its questions, is a pure function of (split, index, seed).

Questions are drawn from this mixture (QUESTION_MIXTURE); one that the picture already has is drawn again:

    read 40%    Which digit is in row one, column two?      five
    row 15%     Which digits are in row two?                three nine
    column 15%  Which digits are in column one?             five three zero
    count 10%   How many fours are there?                   two
    exist 10%   Is there an eight?                          no        (half of them yes)
    total 5%    How many digits are there in total?         six
    parity 5%   Is the sum of row one even?                 yes

Written below the output directory; image paths in the json files are relative to it:

    images/train/*.png, images/test/*.png
    pretrain.json         LLaVA json without images: text for the language model, the training pictures
                          written in words, with captions and questions
    align.json            LLaVA json: one caption a picture
    tune.json             LLaVA json: several questions a picture
    test_questions.jsonl  question_id, image, text, answer, category
    tiles.npz             train [n, 9], test [m, 9]: the digit of each cell, row by row; BLANK_CELL for none
"""

import argparse
import collections
import functools
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

Split = Literal["train", "test"]
Grid = tuple[tuple[int, ...], ...]

IMAGE_SIZE = 84
CELLS_PER_SIDE = 3
CELL_SIZE = IMAGE_SIZE // CELLS_PER_SIDE
TILE_SIZE = 24
BLANK_CELL = 10
GRID_SHAPES = ((2, 2), (2, 3), (3, 2), (3, 3))
TRAINING_SCANS = 0.8
# A 2x2 grid has 31 different questions; drawing without repetition must end.
MOST_QUESTIONS = 20
SPLIT_NUMBERS = {"train": 0, "test": 1}

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
CAPTION_REQUEST = "Describe the picture."
QUESTION_MIXTURE = {
    "read": 0.40, "row": 0.15, "column": 0.15, "count": 0.10, "exist": 0.10, "total": 0.05, "parity": 0.05
}  # fmt: skip
# How the questions of a category begin; the first that fits decides.
QUESTION_OPENINGS = (
    ("Which digit is in row", "read"),
    ("Which digits are in row", "row"),
    ("Which digits are in column", "column"),
    ("How many digits", "total"),
    ("How many", "count"),
    ("Is there", "exist"),
    ("Is the sum of row", "parity"),
)


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    category: str


@dataclass(frozen=True)
class Picture:
    """One composition: which scan stands where, in which colours, and what is asked about it."""

    grid: Grid
    """The digits, row by row."""
    scans: tuple[tuple[int, ...], ...]
    """Numbers of the scans in load_digits, laid out like `grid`."""
    paper: np.ndarray
    """Background colour, float [3], 0..255."""
    inks: np.ndarray
    """Colour of each digit, float [rows, columns, 3], 0..255."""
    questions: tuple[Question, ...]


@functools.cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """The real digits: ink coverage [n, TILE_SIZE, TILE_SIZE] float32 in 0..1, and labels [n]."""
    bunch = load_digits()
    coverage = np.stack(
        [
            np.asarray(Image.fromarray(scan).resize((TILE_SIZE, TILE_SIZE), Image.Resampling.BICUBIC))
            for scan in (bunch.images * (255 / 16)).round().astype(np.uint8)
        ]
    )
    return coverage.astype(np.float32) / 255, bunch.target


def scans_of(split: Split) -> range:
    """Numbers of the scans a split may use. The two splits share none."""
    count = len(scans()[1])
    boundary = int(TRAINING_SCANS * count)
    return range(boundary) if split == "train" else range(boundary, count)


def compose(split: Split, index: int, seed: int, questions: int) -> Picture:
    """Picture number `index` of a split, the same whenever and in whatever order it is asked for."""
    rng = np.random.default_rng([seed, SPLIT_NUMBERS[split], index])
    rows, columns = GRID_SHAPES[rng.integers(len(GRID_SHAPES))]
    allowed = scans_of(split)
    chosen = rng.integers(allowed.start, allowed.stop, size=(rows, columns))
    labels = scans()[1][chosen]
    grid = tuple(tuple(int(digit) for digit in row) for row in labels)
    return Picture(
        grid=grid,
        scans=tuple(tuple(int(number) for number in row) for row in chosen),
        paper=rng.uniform(190, 255, size=3),
        inks=rng.uniform(0, 110, size=(rows, columns, 3)),
        questions=draw_questions(grid, rng, questions),
    )


def render(picture: Picture) -> np.ndarray:
    """The picture as uint8 [IMAGE_SIZE, IMAGE_SIZE, 3]."""
    coverage, _ = scans()
    canvas = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3))
    canvas[:] = picture.paper
    margin = (CELL_SIZE - TILE_SIZE) // 2
    for row, numbers in enumerate(picture.scans):
        for column, number in enumerate(numbers):
            top, left = row * CELL_SIZE + margin, column * CELL_SIZE + margin
            ink = coverage[number][:, :, None]
            tile = canvas[top : top + TILE_SIZE, left : left + TILE_SIZE]
            tile[:] = (1 - ink) * tile + ink * picture.inks[row, column]
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
    digits = [digit for row in grid for digit in row]
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
        case "count":
            # Three of four ask for a digit that is there: otherwise "zero" would mostly be right.
            digit = _present_or_absent(digits, rng, present=0.75)
            text, answer = f"How many {PLURALS[digit]} are there?", NUMBER_WORDS[digits.count(digit)]
        case "exist":
            digit = _present_or_absent(digits, rng, present=0.5)
            article = "an" if NUMBER_WORDS[digit].startswith("e") else "a"
            text, answer = f"Is there {article} {NUMBER_WORDS[digit]}?", _yes_or_no(digit in digits)
        case "total":
            text, answer = "How many digits are there in total?", NUMBER_WORDS[len(digits)]
        case "parity":
            text, answer = f"Is the sum of row {row_word} even?", _yes_or_no(sum(grid[row]) % 2 == 0)
        case _:
            raise AssertionError(f"no such category of question: {category}")
    return Question(text, answer, category)


def category_of(text: str) -> str:
    """The category of a question, from its text alone."""
    for opening, category in QUESTION_OPENINGS:
        if text.startswith(opening):
            return category
    raise AssertionError(f"not a question of this data set: {text}")


def question_only_accuracy(train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What answering without looking scores: the baseline a model that sees must beat.

    Each test question gets the most frequent training answer to the same text; to a text never asked in
    training, the most frequent answer of its category.

    Args:
        train: records of tune.json.
        test: rows of test_questions.jsonl.
    Returns:
        Share of exact answers, 0..1, under "overall" and under each category that occurs.
    """
    by_text: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    by_category: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for record in train:
        turns = record["conversations"]
        for human, assistant in zip(turns[::2], turns[1::2], strict=True):
            text = human["value"].removeprefix("<image>\n")
            by_text[text][assistant["value"]] += 1
            by_category[category_of(text)][assistant["value"]] += 1
    outcomes: dict[str, list[bool]] = collections.defaultdict(list)
    for row in test:
        answers = by_text.get(row["text"]) or by_category[row["category"]]
        correct = bool(answers) and answers.most_common(1)[0][0] == row["answer"]
        outcomes["overall"].append(correct)
        outcomes[row["category"]].append(correct)
    return {category: sum(values) / len(values) for category, values in outcomes.items()}


def picture_path(split: Split, index: int) -> str:
    """Path of a picture below the data set's directory."""
    return f"images/{split}/{index:06d}.png"


def cell_labels(grid: Grid) -> np.ndarray:
    """The lattice's cells row by row, uint8 [9], BLANK_CELL outside the grid."""
    cells = np.full((CELLS_PER_SIDE, CELLS_PER_SIDE), BLANK_CELL, dtype=np.uint8)
    cells[: len(grid), : len(grid[0])] = grid
    return cells.reshape(-1)


def write_dataset(output: Path, train: int, test: int, questions: int, seed: int) -> None:
    """Writes `train` and `test` pictures with `questions` questions each, in the files listed at the top."""
    pictures = {
        "train": [compose("train", index, seed, questions) for index in range(train)],
        "test": [compose("test", index, seed, questions) for index in range(test)],
    }
    for split in ("train", "test"):
        (output / "images" / split).mkdir(parents=True, exist_ok=True)
        for index, picture in enumerate(pictures[split]):
            # The least compression: 4,000 files are written in seconds and still take little room.
            Image.fromarray(render(picture)).save(output / picture_path(split, index), compress_level=1)
    _write_json(output / "pretrain.json", (_pretrain_record(n, p) for n, p in enumerate(pictures["train"])))
    _write_json(output / "align.json", (_align_record(n, p) for n, p in enumerate(pictures["train"])))
    _write_json(output / "tune.json", (_tune_record(n, p) for n, p in enumerate(pictures["train"])))
    with (output / "test_questions.jsonl").open("w", encoding="utf-8") as lines:
        for index, picture in enumerate(pictures["test"]):
            for number, question in enumerate(picture.questions):
                row = {
                    "question_id": f"test-{index:06d}-{number}",
                    "image": picture_path("test", index),
                    "text": question.text,
                    "answer": question.answer,
                    "category": question.category,
                }
                lines.write(json.dumps(row) + "\n")
    train_cells, test_cells = (np.stack([cell_labels(p.grid) for p in group]) for group in pictures.values())
    np.savez_compressed(output / "tiles.npz", train=train_cells, test=test_cells)


def _spell(digits: Iterable[int]) -> str:
    return " ".join(NUMBER_WORDS[digit] for digit in digits)


def _yes_or_no(value: bool) -> str:
    return "yes" if value else "no"


def _present_or_absent(digits: Sequence[int], rng: np.random.Generator, present: float) -> int:
    """A digit that occurs, with probability `present`, or one that does not: nine cells never hold ten."""
    occurring = sorted(set(digits))
    missing = sorted(set(range(10)) - set(digits))
    return int(rng.choice(occurring if rng.random() < present else missing))


def _conversation(exchanges: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [
        {"from": speaker, "value": value}
        for exchange in exchanges
        for speaker, value in zip(("human", "gpt"), exchange, strict=True)
    ]


def _with_image(exchanges: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return _conversation([("<image>\n" + exchanges[0][0], exchanges[0][1]), *exchanges[1:]])


def _exchanges(picture: Picture) -> list[tuple[str, str]]:
    return [(question.text, question.answer) for question in picture.questions]


def written_picture(grid: Grid, columns: int) -> str:
    """The picture in words, patch by patch as a tower yields them: six lines of `columns` (6 or 3) words.

    With three columns every second patch is left out, which is what uniform compression to a half keeps.
    """
    words = (*NUMBER_WORDS, "blank")
    lattice = cell_labels(grid).reshape(CELLS_PER_SIDE, CELLS_PER_SIDE)
    lines = np.repeat(np.repeat(lattice, 2, axis=0), columns // CELLS_PER_SIDE, axis=1)
    return " ".join(words[cell] for cell in lines.reshape(-1))


def _pretrain_record(index: int, picture: Picture) -> dict[str, Any]:
    # A language model that starts a LLaVA can read before it sees: here, a grid that is written in words.
    exchanges = [(CAPTION_REQUEST, caption(picture.grid)), *_exchanges(picture)]
    first = index % 2
    written = written_picture(picture.grid, columns=6 if index % 4 < 2 else 3)
    # Every second record is asked at once, as the tuning data does, without a caption to copy from.
    (question, answer), *rest = exchanges[first:]
    return {"id": f"pretrain-{index:06d}", "conversations": _conversation([(f"{written}\n{question}", answer), *rest])}


def _align_record(index: int, picture: Picture) -> dict[str, Any]:
    conversations = _with_image([(CAPTION_REQUEST, caption(picture.grid))])
    return {"id": f"align-{index:06d}", "image": picture_path("train", index), "conversations": conversations}


def _tune_record(index: int, picture: Picture) -> dict[str, Any]:
    conversations = _with_image(_exchanges(picture))
    return {"id": f"tune-{index:06d}", "image": picture_path("train", index), "conversations": conversations}


def _write_json(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.write_text(json.dumps(list(records)), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compose the quickstart's pictures, captions and questions.")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--train", type=int, default=4000, help="training pictures (default: %(default)s)")
    parser.add_argument("--test", type=int, default=250, help="test pictures (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=6, help="questions a picture (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--tiny", action="store_true", help="64 training and 8 test pictures")
    options = parser.parse_args(arguments)
    if min(options.train, options.test) < 1 or not 1 <= options.questions <= MOST_QUESTIONS:
        parser.error(f"--train and --test must be at least 1, --questions from 1 to {MOST_QUESTIONS}")
    train, test = (64, 8) if options.tiny else (options.train, options.test)
    begin = time.perf_counter()
    write_dataset(options.output, train, test, options.questions, options.seed)
    print(
        f"composed {train} training and {test} test pictures, {test * options.questions} test questions, "
        f"in {time.perf_counter() - begin:.1f} s: {options.output}"
    )


if __name__ == "__main__":
    main()
