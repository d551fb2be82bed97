"""A recipe of LLaVA-1.5-7B's sizes and ways to change it; it needs no data."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from megatron_sts.config import Recipe, check_recipe
from tests.llava_7b import LLAVA_7B

VALUES: dict[str, Any] = {
    "output_dir": "runs/none",
    "model": {"architecture": LLAVA_7B},
    "parallel": {},
    "stages": [
        {
            "name": "align",
            "data": {"train": "none/align.json", "images": "none", "samples": 6400, "text_tokens": 60},
            "trains": ["projector"],
            "epochs": 1,
            "batch": {"global": 64, "micro": 2},
            "learning_rate": {"projector": 1e-3},
            "compress": {"keep_ratio": 0.25},
        },
        {
            "name": "tune",
            "data": {"train": "none/tune.json", "images": "none", "samples": 9600, "text_tokens": 340},
            "trains": ["projector", "language"],
            "epochs": 1,
            "batch": {"global": 32, "micro": 2},
            "learning_rate": {"projector": 1e-5, "language": 1e-5},
            "skip": {"alpha": 0.5},
        },
    ],
}


@pytest.fixture
def make() -> Callable[..., Recipe]:
    """The recipe with some values replaced, by dotted name with __; `tune__skip__alpha=1.0` reaches into a stage."""

    def recipe(**changes: Any) -> Recipe:
        values = copy.deepcopy(VALUES)
        for name, value in changes.items():
            *path, last = name.split("__")
            target: Any = values
            for key in path:
                stages = {stage["name"]: stage for stage in values["stages"]}
                target = stages[key] if target is values and key in stages else target[key]
            if value is None:
                target.pop(last, None)
            else:
                target[last] = value
        made = Recipe.model_validate(values)
        check_recipe(made, check_files=False)
        return made

    return recipe
