"""Shows that the run.json of an older version is read with the keys of this one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_sts.config import Recipe, read_run
from megatron_sts.config.run_file import write_run


@pytest.mark.parametrize(("old", "now"), [("error", "error"), ("cut", "cut"), ("drop", "set_aside")])
def test_the_old_name_of_too_long_is_read(load: Callable[..., Recipe], tmp_path: Path, old: str, now: str) -> None:
    write_run(tmp_path, "tune", 3, load())
    content = json.loads((tmp_path / "run.json").read_text())
    for stage in content["recipe"]["stages"]:
        stage["data"]["over_long"] = old
        del stage["data"]["too_long"]
        stage["data"]["max_bad_records"] = 3
    (tmp_path / "run.json").write_text(json.dumps(content))
    stages = read_run(tmp_path).recipe.stages
    assert {(stage.data.too_long, stage.data.max_bad_records) for stage in stages} == {(now, 3)}
