"""Shows that training from shards is training from the json file and the folder they were packed from."""

import json
import shutil
from pathlib import Path
from typing import Any

from megatron_sts.config import LATEST_FILE, Recipe, checkpoint_path, checkpoint_root
from megatron_sts.data.pack import pack
from megatron_sts.train.stages import train
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _losses(recipe: Recipe) -> list[tuple[str, int, float, float]]:
    lines = map(json.loads, (recipe.output_dir / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"], line["loss"], line["grad_norm"]) for line in lines]


def test_shards_train_as_the_json_file_does_and_resume(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"align__steps": 2, "tune__steps": 4, "checkpoint": {"every_steps": 2, "keep_last": 9}}
    from_json = tiny_recipe(tmp_path, **changes)
    packed = pack(from_json.stages[0].data.train, tmp_path / "images", tmp_path / "shards", shard_bytes=60_000)
    assert len(packed.shards) > 2
    data = {"train": str(tmp_path / "shards"), "images": None, "workers": 1}
    from_shards = tiny_recipe(tmp_path, **changes, align__data=data, tune__data=data, output_dir=str(tmp_path / "two"))
    run_ranks(2, train, from_json)
    run_ranks(2, train, from_shards)
    expected = _losses(from_json)
    assert len(expected) == 6 and _losses(from_shards) == expected

    # As if killed after step 2 of the second stage.
    shutil.rmtree(checkpoint_path(from_shards, "tune", 4))
    (checkpoint_root(from_shards) / LATEST_FILE).write_text(checkpoint_path(from_shards, "tune", 2).name)
    run_ranks(2, train, from_shards)
    assert _losses(from_shards) == expected
