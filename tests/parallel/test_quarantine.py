"""Shows that records whose pictures turn bad while training are left out alike on every layout and after a resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sts.config import LATEST_FILE, Recipe, StageConfig, checkpoint_path, checkpoint_root
from megatron_sts.train.stages import train
from tests.parallel.observe import observe
from tests.ranks import RankFailed, run_ranks
from tests.tiny import tiny_data, tiny_recipe

BAD = ("r2", "r7", "r14")
LAYOUTS = {"data": ({}, 2), "tensor_pipeline": ({"tensor": 2, "pipeline": 2}, 4), "three_stages": ({"pipeline": 3}, 3)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of 24 records, two epochs of it in a stage; the pictures of three records are cut short."""
    root = tmp_path_factory.mktemp("quarantine")
    recipe = _recipe(root)
    for record in json.loads(recipe.stages[0].data.train.read_text()):
        if record["id"] in BAD:
            picture = root / "images" / record["image"]
            picture.write_bytes(picture.read_bytes()[:200])
    return root


def _recipe(root: Path, allowed: int = 3, **changes: Any) -> Recipe:
    data = {"max_bad_records": allowed}
    sizes = {"model__architecture__language__layers": 6, "align__steps": 1, "tune__steps": 6}
    return tiny_recipe(root, align__data=data, tune__data=data, **sizes, **changes)


def _lines(recipe: Recipe, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (recipe.output_dir / file).read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(root: Path) -> Any:
    return observe(_recipe(root, output_dir=str(root / "alone")), "tune", 1, steps=4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_leave_the_same_out(root: Path, alone: Any, layout: str) -> None:
    parallel, ranks = LAYOUTS[layout]
    recipe = _recipe(root, parallel=parallel, output_dir=str(root / layout))
    together = observe(recipe, "tune", ranks, steps=4)
    # The later losses tell of the weights; Adam makes whole steps of gradients that are rounding alone.
    np.testing.assert_allclose(together.losses, alone.losses, rtol=2e-6)
    np.testing.assert_allclose(together.grad_norms, alone.grad_norms, rtol=2e-5)
    found = _lines(recipe, "quarantine.jsonl")
    assert {bad["id"] for bad in found} == set(BAD) and len(found) == len(BAD)
    assert all("cannot be decoded" in bad["problem"] for bad in found)


def test_all_ranks_stop_where_more_are_bad_than_allowed(root: Path) -> None:
    recipe = _recipe(root, allowed=2, parallel={"pipeline": 2}, output_dir=str(root / "stops"))
    with pytest.raises(RankFailed, match=r"DataError: data\.max_bad_records: found 3 records of stage tune"):
        observe(recipe, "tune", 2, steps=4)


def test_a_resumed_run_keeps_what_it_knew(root: Path) -> None:
    whole = _recipe(root, output_dir=str(root / "whole"), checkpoint={"every_steps": 4, "keep_last": 9})
    run_ranks(1, train, whole)
    expected = [line["loss"] for line in _lines(whole, "metrics.jsonl")]
    found = _lines(whole, "quarantine.jsonl")
    # As if killed after step 4, with the pictures mended in the meantime.
    shutil.rmtree(checkpoint_path(whole, "tune", 6))
    (checkpoint_root(whole) / LATEST_FILE).write_text(checkpoint_path(whole, "tune", 4).name)
    mended = tiny_data(root / "mended").parent / "images"
    run_ranks(2, train, whole.model_copy(update={"stages": [_with_images(stage, mended) for stage in whole.stages]}))
    assert [line["loss"] for line in _lines(whole, "metrics.jsonl")] == pytest.approx(expected, rel=2e-6)
    assert _lines(whole, "quarantine.jsonl") == found


def _with_images(stage: StageConfig, images: Path) -> StageConfig:
    return stage.model_copy(update={"data": stage.data.model_copy(update={"images": images})})
