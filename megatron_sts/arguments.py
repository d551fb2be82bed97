"""What several commands take as options; without an import that takes seconds."""

import argparse

DTYPES = ("float32", "bfloat16", "float16")
"""Names of torch's types that weights can have."""
QUESTION_FORMATS = ("llava", "pope", "scienceqa")
"""Formats of questions (evaluation/formats.py)."""


def positive(text: str) -> int:
    """A whole number above 0, as argparse's `type`; argparse names the option where it is none."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def above_zero(text: str) -> float:
    """A number above 0, as argparse's `type`; argparse names the option where it is none."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
