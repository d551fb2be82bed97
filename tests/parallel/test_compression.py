"""Every strategy of the Visual Token Compressor trains in every layout as in one process.

Projector, tower and language model are trained, and their gradients compared; tolerances are those of test_layouts.py.
Micro-batches have from no picture to five, so that ranks have unequal shares of the tower's work, or no part in it, and
chunks of a sequence have no visual token. The layouts pad to different multiples.
"""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from megatron_sts.config import Recipe
from megatron_sts.parallel.sequence import length_multiple, padded_length
from megatron_sts.train import stage_data
from tests.parallel.observe import Observation, assert_same, observe_all, observe_rank_all, put_together
from tests.ranks import run_ranks
from tests.tiny import ARCHITECTURE, tiny_data, tiny_recipe, tiny_tokenizer

COMMON: dict[str, Any] = {
    "model__architecture": ARCHITECTURE | {"language": ARCHITECTURE["language"] | {"layers": 2}},
    "optimizer": {"epsilon": 1e-2},
    "tune__batch": {"global": 6, "micro": 2},
    "tune__trains": ["projector", "language", "vision"],
    "tune__learning_rate": {"vision": 1e-3},
}
# One token of sixteen, then five; windows of three over a side of four; prompts that the template drops.
STRATEGIES: dict[str, dict[str, Any]] = {
    "none": {"strategy": "none"},
    "uniform": {"schedule": {"kind": "steps", "values": [0.05, 0.3]}},
    "random": {"strategy": "random", "keep_ratio": 0.3},
    "text_guided": {"strategy": "text_guided", "keep_tokens": 5},
    "mean_pool": {"strategy": "mean_pool", "window": 3},
}
CASES = {
    **{name: {"tune__compress": compress, "tune__steps": 2} for name, compress in STRATEGIES.items()},
    "text_guided, packed": {
        "tune__compress": STRATEGIES["text_guided"],
        "tune__steps": 2,
        "tune__data": {"packing": True},
    },
}
CASES["text_guided"]["tune__data"] = {"template": "plain"}
LAYOUTS = {
    "tp2": (2, {"tensor": 2}),
    "tp2_sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "pp2": (2, {"pipeline": 2}),
    "tp2_cp2": (4, {"tensor": 2, "context": 2}),
    "tp2_sp_cp2": (4, {"tensor": 2, "sequence_parallel": True, "context": 2}),
    "tp2_pp2_sp": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True}),
}


def records_of_many_images(root: Path) -> Path:
    """Tokenizer and data under a directory: 0 to 3 images a record, in an order in which micro-batches have none."""
    tiny_tokenizer(root / "tokenizer")
    records = json.loads(tiny_data(root).read_text())
    pictures = [record["image"] for record in records if "image" in record]
    for number, record in enumerate(records):
        held = [pictures[(number + place) % len(pictures)] for place in range((0, 0, 3, 1, 2, 1)[number % 6])]
        question = record["conversations"][0]
        question["value"] = "<image>\n" * len(held) + question["value"].replace("<image>\n", "")
        record.pop("image", None)
        if held:
            record["image"] = held
    (root / "train.json").write_text(json.dumps(records))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return records_of_many_images(tmp_path_factory.mktemp("compression"))


def _recipes(root: Path, parallel: dict[str, Any]) -> list[Recipe]:
    return [tiny_recipe(root, parallel=parallel, **(COMMON | case)) for case in CASES.values()]


@pytest.fixture(scope="module")
def references(root: Path) -> list[Observation]:
    return observe_all(_recipes(root, {}), "tune", 1, steps=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strategies_train_as_in_one_process(root, references, layout):
    ranks, parallel = LAYOUTS[layout]
    for found, expected in zip(observe_all(_recipes(root, parallel), "tune", ranks, steps=2), references, strict=True):
        assert_same(found, expected)


def _observe_padded(recipes: list[Recipe], further: int) -> list[dict[str, Any]]:
    def padded(length: int, recipe: Recipe) -> int:
        return padded_length(length, recipe) + further * length_multiple(recipe)

    with patch.object(stage_data, "padded_length", padded):
        return observe_rank_all(recipes, "tune", 2)


@pytest.mark.parametrize("layout", ["tp2_sp", "tp2_cp2"])
def test_padding_to_another_legal_length_changes_no_loss_and_no_gradient(root, references, layout):
    ranks, parallel = LAYOUTS[layout]
    found_all = put_together(run_ranks(ranks, _observe_padded, _recipes(root, parallel)[1:4], 5))
    for found, expected in zip(found_all, references[1:4], strict=True):
        assert_same(found, expected)


def test_strategies_differ_and_reach_projector_and_tower(references):
    assert len({observation.losses[0] for observation in references}) == len(references)
    for observation in references:
        for part in ("projector.linear_1", "projector.linear_2", "vision.embeddings.patch_embedding"):
            assert observation.gradients[f"{part}.weight"].any()
