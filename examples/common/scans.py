"""scikit-learn's handwritten digits, real scans, and which of them a split of an example's images may use."""

import functools
from typing import Literal

import numpy as np
from sklearn.datasets import load_digits

Split = Literal["train", "validation", "test"]

LAST_OF_SPLIT: dict[Split, float] = {"train": 0.8, "validation": 0.9, "test": 1.0}
"""By split: the share of the scans at which its own end; they begin where those of the split before end."""
SPLIT_NUMBERS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}
"""For the seeds of what is drawn for a split."""
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@functools.cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """The digits: ink coverage uint8 [n, 8, 8] in 0..255, and labels [n]."""
    bunch = load_digits()
    return (bunch.images * (255 / 16)).round().astype(np.uint8), bunch.target


def scans_of(split: Split) -> range:
    """Numbers of the scans that a split may use; the splits share none."""
    count = len(scans()[1])
    ends = [0, *(int(share * count) for share in LAST_OF_SPLIT.values())]
    place = list(LAST_OF_SPLIT).index(split)
    return range(ends[place], ends[place + 1])


def held_out_scans() -> range:
    """Those of validation and test together."""
    return range(scans_of("train").stop, len(scans()[1]))
