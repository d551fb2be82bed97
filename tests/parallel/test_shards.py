"""Shows that training from shards, or from images inside the records, is training from a json file and its folder."""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.config import LATEST_FILE, Recipe, checkpoint_path, checkpoint_root
from megatron_sts.data.pack import pack
from megatron_sts.train.stages import train
from tests.ranks import run_ranks
from tests.tiny import tiny_recipe


def _losses(recipe: Recipe) -> list[tuple[str, int, float, float]]:
    lines = map(json.loads, (recipe.output_dir / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"], line["loss"], line["grad_norm"]) for line in lines]


def _embedded(data: Path) -> Path:
    """The same records with their images inside, and a key that nothing reads."""
    records = json.loads(data.read_text())
    for number, record in enumerate(records):
        if "image" in record:
            image = base64.b64encode((data.parent / "images" / record["image"]).read_bytes()).decode()
            record["image"] = f"data:image/png;base64,{image}" if number % 2 else {"bytes": image, "path": None}
    records[5]["tools"] = records[7]["tools"] = "[{}]"
    path = data.with_name("embedded.json")
    path.write_text(json.dumps(records))
    return path


def test_shards_and_images_inside_records_train_as_files_do_and_resume(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
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

    inside = {"train": str(_embedded(from_json.stages[0].data.train)), "workers": 1}
    from_records = tiny_recipe(
        tmp_path, **changes, align__data=inside, tune__data=inside, output_dir=str(tmp_path / "three")
    )
    capfd.readouterr()
    run_ranks(2, train, from_records)
    assert _losses(from_records) == expected
    said = capfd.readouterr().out
    for stage in ("align", "tune"):
        assert said.count(f"{stage}: read nowhere: `tools` 2 times, first in record 'r5'") == 1

    # As if killed after step 2 of the second stage.
    shutil.rmtree(checkpoint_path(from_shards, "tune", 4))
    (checkpoint_root(from_shards) / LATEST_FILE).write_text(checkpoint_path(from_shards, "tune", 2).name)
    run_ranks(2, train, from_shards)
    assert _losses(from_shards) == expected
