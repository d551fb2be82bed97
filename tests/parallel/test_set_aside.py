"""Shows that records which cannot be trained on are set aside alike on every rank, and that a resume keeps to it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from PIL import Image

from megatron_sts.config import LATEST_FILE, Recipe, checkpoint_path, checkpoint_root
from megatron_sts.parallel.groups import start_groups
from megatron_sts.train.stage_data import StageData
from megatron_sts.train.stages import train
from tests.ranks import RankFailed, run_ranks
from tests.tiny import tiny_data, tiny_recipe, tiny_tokenizer

ODD: dict[int, Any] = {
    3: {"id": "gone", "image": "none.png", "conversations": [("human", "<image>\nwhat is it"), ("gpt", "red")]},
    8: 7,
    14: {"id": "mute", "conversations": [("human", "what is it"), ("gpt", " ")]},
    19: {"id": "long", "conversations": [("human", "what is it"), ("gpt", "red " * 200)]},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clean.json, and odd.json with four records more that are set aside."""
    root = tmp_path_factory.mktemp("set_aside")
    tiny_tokenizer(root / "tokenizer")
    path = tiny_data(root)
    records = json.loads(path.read_text())
    (root / "clean.json").write_text(json.dumps(records))
    for place, odd in ODD.items():
        if isinstance(odd, dict):
            odd = odd | {"conversations": [{"from": who, "value": text} for who, text in odd["conversations"]]}
        records.insert(place, odd)
    (root / "odd.json").write_text(json.dumps(records))
    return root


def _recipe(root: Path, name: str, images: str = "images", **changes: Any) -> Recipe:
    data = {"train": str(root / f"{name}.json"), "images": str(root / images), "max_bad_records": 0.1}
    steps = {"align__steps": 1, "tune__steps": 3, "checkpoint": {"every_steps": 2, "keep_last": 9}}
    changes = {"output_dir": str(root / name), "align__data": data, "tune__data": data, **steps} | changes
    return tiny_recipe(root, **changes)


def _lines(recipe: Recipe, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (recipe.output_dir / file).read_text().splitlines()]


def _losses(recipe: Recipe) -> list[float]:
    return [line["loss"] for line in _lines(recipe, "metrics.jsonl")]


def _forget_the_end(recipe: Recipe) -> None:
    """As if killed after the second step."""
    shutil.rmtree(checkpoint_path(recipe, "tune", 3))
    (checkpoint_root(recipe) / LATEST_FILE).write_text(checkpoint_path(recipe, "tune", 2).name)


def test_odd_records_are_set_aside_and_stay_so_over_a_resume(root: Path) -> None:
    clean = _recipe(root, "clean")
    odd = _recipe(root, "odd", parallel={"pipeline": 2})
    run_ranks(1, train, clean)
    run_ranks(2, train, odd)
    expected = pytest.approx(_losses(clean), rel=2e-6)
    assert _losses(odd) == expected
    written = _lines(odd, "quarantine.jsonl")
    tune = [line for line in written if line["stage"] == "tune"]
    assert [(line["step"], line["record"], line["id"]) for line in tune] == [(0, 3, "gone"), (0, 8, "")]
    assert "image none.png: no such file" in tune[0]["problem"] and len(written) == 4

    # The image is there by now, but the stage goes on as it began.
    _forget_the_end(odd)
    Image.new("RGB", (56, 56)).save(root / "images" / "none.png")
    run_ranks(2, train, odd)
    assert _losses(odd) == expected and _lines(odd, "quarantine.jsonl") == written

    # Where it is not known any more what was measured, another order would be the outcome.
    _forget_the_end(odd)
    shutil.rmtree(odd.output_dir / "index")
    with pytest.raises(RankFailed, match=r"found 25 samples to train on .* the stage was begun with 24"):
        run_ranks(2, train, odd)


def _prepare_elsewhere(recipe: Recipe, other: Recipe) -> None:
    """Rank 1 on a node of its own, with other images and an output_dir that is not shared."""
    start_groups(recipe.parallel, recipe.seed)
    recipe = other if dist.get_rank() else recipe
    StageData(recipe, recipe.stage("tune"))


def test_ranks_that_find_other_samples_all_say_so(root: Path) -> None:
    shutil.copytree(root / "images", root / "other_images")
    (root / "other_images" / "0.png").unlink()
    here = _recipe(root, "clean", output_dir=str(root / "here"))
    there = _recipe(root, "clean", "other_images", output_dir=str(root / "there"))
    with pytest.raises(RankFailed, match=r"rank 0 finds 24 samples to train on and rank 1 23, or of other lengths"):
        run_ranks(2, _prepare_elsewhere, here, there)
