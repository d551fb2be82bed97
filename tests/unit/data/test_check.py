"""Shows that a check of data finds each kind of problem, counts as training does, and says all of it by id."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast

from megatron_sts.data import TEMPLATES
from megatron_sts.data.check import check_data
from megatron_sts.data.check_lengths import TextSettings
from megatron_sts.data.check_stage import check_stage_data, stages_to_check
from megatron_sts.data.check_text import check_text
from megatron_sts.data.lengths import TooLong
from megatron_sts.errors import ConfigError, DataError
from megatron_sts.train.stage_data import StageData
from tests.tiny import tiny_recipe
from tests.unit.hf.tiny_llava import make_tokenizer
from tools.prepare_data import main


def record(name: Any, image: str | None = None, answer: str = "yes", question: str = "Sure?") -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns} | ({} if image is None else {"image": image})


def write(folder: Path, records: list[Any]) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture
def settings(word_tokenizer: PreTrainedTokenizerFast) -> Callable[[int, TooLong], TextSettings]:
    def make(max_tokens: int, too_long: TooLong) -> TextSettings:
        return TextSettings(word_tokenizer, TEMPLATES["vicuna_v1"], "", 9, 4, max_tokens, too_long)

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_problem_is_found_by_id(
    tmp_path: Path, image_folder: Path, settings: Callable[[int, TooLong], TextSettings], workers: int
) -> None:
    (image_folder / "cut.png").write_bytes((image_folder / "0.png").read_bytes()[:50])
    (image_folder / "out.png").symlink_to("/etc/passwd")
    many = [record(f"good{number}", f"{number % 8}.png") for number in range(70)]
    bad = [
        record("gone", "none.png"),
        record("cut", "cut.png"),
        record("out", "out.png"),
        record("long", answer="yes " * 20),
        record("broken", answer=""),
        record("twice"),
        record("twice"),
        7,
    ]
    told: dict[str, tuple[int, int]] = {}
    found = check_data(
        write(tmp_path, [*many, *bad]),
        image_folder,
        settings(20, "error"),
        workers=workers,
        progress=lambda what: lambda done, total: told.update({what: (done, total)}),
    )
    assert told == {"MB read": (1, 1), "images": (11, 11), "records": (77, 77)}
    assert (found["records"], found["usable"], found["text_only"]) == (78, 72, 4)
    assert found["images"] == {"named": 73, "files": 11, "embedded": 0, "bad_files": 3, "most_in_a_record": 1}
    problems = found["problems"]
    assert [(one["record"], one["id"]) for one in problems["bad_records"]] == [(77, None)]
    assert problems["repeated_ids"] == [{"id": "twice"}]
    assert [one["id"] for one in problems["images"]] == ["gone", "cut", "out"]
    for one, part in zip(problems["images"], ["no such image", "cannot be decoded", "outside"], strict=True):
        assert part in one["problem"]
    assert problems["too_long"] == [{"id": "long", "tokens": 25}]
    assert problems["without_supervision"] == [{"id": "broken"}] and problems["cannot_be_encoded"] == []
    json.dumps(found)


def test_lengths_by_hand(tmp_path: Path, image_folder: Path, settings: Callable[[int, TooLong], TextSettings]) -> None:
    # <s> USER: Sure? ASSISTANT: yes </s>; with a picture <s> USER: _ <image> \nSure? ASSISTANT: yes </s>
    found = check_data(write(tmp_path, [record("a"), record("b", "0.png")]), image_folder, settings(20, "error"))
    lengths = found["lengths"]
    assert lengths["text"] == {"mean": 6.5, "p50": 7, "p99": 7, "max": 7}
    assert lengths["supervised"]["max"] == 2
    assert lengths["before_compression"] == {"mean": 11.0, "p50": 16, "p99": 16, "max": 16}
    assert lengths["after_compression"]["max"] == 11
    text = check_text(found)
    assert "2 records, 2 of them usable" in text and "with 9 an image" in text and "compressed to 4" in text
    dense = replace(settings(20, "error"), kept_tokens=9)
    text = check_text(check_data(write(tmp_path, [record("a")]), None, dense))
    assert "with 9 an image" in text and "compressed to" not in text


@pytest.mark.parametrize(
    ("too_long", "usable", "cut", "shortened", "set_aside"),
    [("error", 1, 0, 0, 2), ("cut", 3, 2, 0, 0), ("set_aside", 1, 0, 0, 2), ("drop_turns", 2, 0, 1, 1)],
)
def test_records_that_are_too_long_are_usable_as_the_recipe_has_it(
    tmp_path: Path,
    settings: Callable[[int, TooLong], TextSettings],
    too_long: TooLong,
    usable: int,
    cut: int,
    shortened: int,
    set_aside: int,
) -> None:
    twice = record("twice")
    twice["conversations"] *= 2
    path = write(tmp_path, [record("long", answer="yes no two"), record("short"), twice])
    found = check_data(path, None, settings(6, too_long))
    assert found["usable"] == usable
    expected = {"records": 2, "cut": cut, "without_last_turns": shortened, "set_aside": set_aside}
    assert found["lengths"]["too_long"] == {"policy": too_long, **expected}
    text = check_text(found)
    assert "2 records longer than max_tokens:\n  id 'long': 8 tokens" in text
    said = f"{too_long} cuts {cut} records at 6 tokens, drops last turns of {shortened} and sets {set_aside} aside"
    assert (f"too_long: {said}" in text) == (too_long != "error")


def test_the_text_shows_a_few_and_says_how_many_more(tmp_path: Path) -> None:
    text = check_text(check_data(write(tmp_path, [*({"id": f"r{number}"} for number in range(9)), record("a")]), None))
    assert "9 records that cannot be read:\n  record 0, id 'r0': conversations: found nothing" in text
    assert "id 'r4'" in text and "id 'r5'" not in text and "... and 4 more" in text


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: is no folder"):
        check_data(write(tmp_path, [record("a")]), tmp_path / "nowhere")


def test_a_stage_is_checked_as_it_would_be_trained(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, align__compress={"keep_tokens": 3})
    stage = recipe.stage("align")
    found = check_stage_data(recipe, stage)
    assert (found["stage"], found["usable"]) == ("align", 24)
    index = StageData(recipe, stage).index
    for tokens, key in ((16, "before_compression"), (3, "after_compression")):
        lengths = index.lengths(tokens)
        assert (found["lengths"][key]["mean"], found["lengths"][key]["max"]) == (
            round(lengths.mean(), 1),
            lengths.max(),
        )


def test_the_stages_that_read_a_file_are_checked(tmp_path: Path) -> None:
    other = write(tmp_path, [record("a")])
    recipe = tiny_recipe(tmp_path, tune__data={"train": str(other)})
    assert [stage.name for stage in stages_to_check(recipe, None, None)] == ["align", "tune"]
    assert [stage.name for stage in stages_to_check(recipe, None, other)] == ["tune"]
    assert [stage.name for stage in stages_to_check(recipe, "align", other)] == ["align"]
    with pytest.raises(ConfigError, match=r"third\.json: no stage.*align, tune with --stage"):
        stages_to_check(recipe, None, tmp_path / "third.json")


def test_the_command_says_by_its_exit_code_whether_all_is_well(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["--images", str(image_folder), "--workers", "0"]
    assert main(["check", str(write(tmp_path, [record("a", "0.png")])), *images]) == 0
    assert "1 records, 1 of them usable" in capsys.readouterr().out
    assert main(["check", str(write(tmp_path, [record("a", "0.png"), record("b", "no.png")])), *images, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in found["problems"]["images"]] == ["b"]
    assert main(["check", str(tmp_path / "none.json")]) == 2
    assert "error: " in capsys.readouterr().err
    for arguments in ([], ["a.json", "b.json"], ["a.json", "--stage", "tune"], ["a.json", "--tokenizer", "x"]):
        with pytest.raises(SystemExit):
            main(["check", *arguments])


def test_the_tokenizer_of_a_language_model_is_given_the_image_token_and_it_is_said(
    tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = make_tokenizer(image_token=False)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    CLIPVisionConfig(image_size=56, patch_size=14).save_pretrained(tmp_path / "vision")
    data = write(tmp_path, [record("a", "0.png"), record("b")])
    command = ["check", str(data), "--images", str(image_folder), "--workers", "0", "--template", "plain"]
    given = ["--tokenizer", str(tmp_path / "tokenizer"), "--vision", str(tmp_path / "vision")]
    assert main([*command, *given]) == 0
    said = capsys.readouterr().out
    assert "2 records, 2 of them usable" in said and "with 16 an image" in said
    assert "tokenizer: has no <image>; it was added for this check, as by tools/convert.py import" in said

    make_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert main([*command, *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lengths"]["image_token_added"] is False


def test_a_tokenizer_that_fits_no_record_is_one_error(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    stage = recipe.stage("tune")
    make_tokenizer(image_token=False).save_pretrained(tmp_path / "tokenizer")
    for act in (lambda: check_stage_data(recipe, stage), lambda: StageData(recipe, stage)):
        with pytest.raises(DataError, match=r"^tokenizer .*: has no special token <image>; use that of the checkpoint"):
            act()


def test_a_check_counts_bad_records_against_what_training_allows(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tune__data={"max_bad_records": 2})
    data = recipe.stage("tune").data.train
    records = json.loads(data.read_text())
    records[1]["video"], records[2]["image"] = "a.mp4", "none.png"
    data.write_text(json.dumps(records))
    found = check_stage_data(recipe, recipe.stage("tune"))
    assert (found["bad"], found["max_bad_records"], found["usable"]) == (2, 2, 22)
    assert "bad records: 2; data.max_bad_records allows 2 of them: training sets them aside" in check_text(found)
    assert len(StageData(recipe, recipe.stage("tune")).prepared.bad) == 2
    assert "training stops there" in check_text(found | {"max_bad_records": 1})


def test_a_stage_without_an_image_folder_is_checked_as_it_would_be_trained(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tune__data={"images": None, "max_bad_records": 0.9})
    stage = recipe.stage("tune")
    found = check_stage_data(recipe, stage)
    prepared = StageData(recipe, stage).prepared
    assert found["usable"] == len(prepared.samples) == found["text_only"]
    assert found["bad"] == len(prepared.bad) > 0
    assert found["problems"]["images"][0]["problem"].startswith("data.images is not set")
