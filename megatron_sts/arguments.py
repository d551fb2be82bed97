"""Values of the command line that argparse has no type for."""

import argparse


def positive(text: str) -> int:
    """A whole number above 0, as argparse's `type`; argparse names the option where it is none."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number
