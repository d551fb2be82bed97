"""Shows that the usable records of a data file are written as they are, and over nothing that is there."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.data import read_samples
from megatron_sts.data.check import check_data
from megatron_sts.errors import DataError
from tests.tiny import tiny_recipe
from tools.prepare_data import main

TURNS = '[{"from":"human","value":"wh\\u00e4t"}, {"from":"gpt","value":"é"}]'
GOOD = '{ "id":"%s",\t"image": "0.png", "conversations": ' + TURNS + "}"
EMPTY = GOOD.replace("é", "")


def write(path: Path, begin: str, between: str, end: str) -> Path:
    records = [GOOD % "first", EMPTY % "silent", (GOOD % "gone").replace("0.png", "none.png"), GOOD % "last"]
    path.write_text(begin + between.join(records) + end, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("suffix", "given", "begin", "between", "end"),
    [
        (".json", (" [ ", " ,\n\n ", "]"), "[\n", ",\n", "\n]\n"),
        (".jsonl", ("\n", "\r\n\n", ""), "", "\n", "\n"),
    ],
)
def test_the_usable_records_are_written_byte_for_byte_in_order(
    tmp_path: Path, image_folder: Path, suffix: str, given: tuple[str, str, str], begin: str, between: str, end: str
) -> None:
    data, output = write(tmp_path / f"data{suffix}", *given), tmp_path / f"usable{suffix}"
    report = check_data(data, image_folder, usable_file=output)
    assert report["usable"] == 2
    assert output.read_text(encoding="utf-8") == begin + GOOD % "first" + between + GOOD % "last" + end
    assert [sample.id for sample in read_samples(output)] == ["first", "last"]
    assert check_data(output, image_folder)["usable"] == 2
    assert sorted(path.name for path in tmp_path.glob("*.json*")) == sorted([data.name, output.name])


def test_what_is_there_is_not_written_over_and_a_wrong_place_is_refused_before_the_work(
    tmp_path: Path, image_folder: Path
) -> None:
    data = write(tmp_path / "data.json", "[", ",", "]")
    before = data.read_bytes()
    for output, said in (
        (data, "exists already"),
        (tmp_path / "usable.jsonl", r"end it in '\.json'"),
        (tmp_path / "none" / "usable.json", "no such folder"),
    ):
        with pytest.raises(DataError, match=said):
            check_data(data, image_folder, usable_file=output, progress=lambda what: pytest.fail("work began"))
    assert data.read_bytes() == before
    with pytest.raises(DataError, match="directory of shards"):
        check_data(tmp_path, None, usable_file=tmp_path / "usable.json")


def test_the_command_writes_what_a_stage_would_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(tmp_path)
    data = recipe.stages[1].data.train
    records: list[dict[str, Any]] = json.loads(data.read_text())
    records[3]["conversations"][1]["value"] = "red " * 200
    data.write_text(json.dumps(records))
    config, output = tmp_path / "recipe.yaml", tmp_path / "usable.json"
    config.write_text(json.dumps(recipe.model_dump(mode="json", by_alias=True)))
    command = ["check", "--config", str(config), "--workers", "0", "--usable", str(output)]
    assert main(command) == 2
    assert "choose one with --stage" in capsys.readouterr().err and not output.exists()
    assert main([*command, "--stage", "tune"]) == 1
    assert capsys.readouterr().out.endswith(f"{output}: the 23 usable records\n")
    assert json.loads(output.read_text()) == [*records[:3], *records[4:]]
