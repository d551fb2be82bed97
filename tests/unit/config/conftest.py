"""A small recipe that is right, and ways to load variants of it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.config import Recipe, load_recipe
from megatron_sts.errors import ConfigError

ARCHITECTURE: dict[str, Any] = {
    "vision": {
        "family": "clip",
        "image_size": 84,
        "patch_size": 14,
        "hidden_size": 64,
        "layers": 3,
        "attention_heads": 4,
        "ffn_hidden_size": 128,
    },
    "language": {
        "family": "llama",
        "layers": 8,
        "hidden_size": 128,
        "ffn_hidden_size": 352,
        "attention_heads": 8,
        "query_groups": 4,
        "vocabulary_size": 300,
    },
}
RECIPE: dict[str, Any] = {
    "output_dir": "runs/small",
    "model": {"architecture": ARCHITECTURE},
    "stages": [
        {
            "name": "align",
            "data": {"train": "data/align.json", "images": "data/images"},
            "trains": ["projector"],
            "epochs": 1,
            "batch": {"global": 16, "micro": 4},
            "learning_rate": {"projector": 1e-3},
            "compress": {"strategy": "uniform", "keep_ratio": 0.25},
        },
        {
            "name": "tune",
            "data": {"train": "data/tune.json", "images": "data/images", "samples": 100, "text_tokens": 20},
            "trains": ["projector", "language"],
            "steps": 20,
            "batch": {"global": 8, "micro": 2},
            "learning_rate": {"projector": 2e-5, "language": 2e-5},
            "skip": {"alpha": 0.5, "epsilon": 0.5},
        },
    ],
}


@pytest.fixture
def recipe_values() -> dict[str, Any]:
    """The plain values of the recipe, to change at will."""
    return copy.deepcopy(RECIPE)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write YAML text, or values as JSON (which is YAML), to a file of the test and give its path."""

    def write_yaml(values: Any, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return path

    return write_yaml


@pytest.fixture
def load(write: Callable[..., Path], recipe_values: dict[str, Any]) -> Callable[..., Recipe]:
    """Load the recipe with overrides, without looking for its data."""
    path = write(recipe_values)

    def load_with(*overrides: str, check_files: bool = False) -> Recipe:
        return load_recipe(path, overrides, check_files=check_files)

    return load_with


@pytest.fixture
def refused(load: Callable[..., Recipe]) -> Callable[..., str]:
    """The message with which the recipe is refused under some overrides."""

    def message_of(*overrides: str, check_files: bool = False) -> str:
        with pytest.raises(ConfigError) as caught:
            load(*overrides, check_files=check_files)
        return str(caught.value)

    return message_of
