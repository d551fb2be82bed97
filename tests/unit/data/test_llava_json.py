"""Shows that LLaVA json is read as written, and that every kind of bad record is named with its remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.data import Turn, read_samples, scan_records
from megatron_sts.errors import DataError

QUESTION = {"from": "human", "value": "<image>\nWhat digit?"}
ANSWER = {"from": "gpt", "value": "two"}


def write(tmp_path: Path, records: Any, name: str = "data.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def message_for(tmp_path: Path, record: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_samples(write(tmp_path, [record]))
    return str(caught.value)


def test_reads_single_images_lists_of_images_and_text_only_records(tmp_path: Path) -> None:
    samples = read_samples(
        write(
            tmp_path,
            [
                {"id": "a", "image": "x/1.png", "conversations": [QUESTION, ANSWER]},
                {
                    "id": 7,
                    "image": ["1.png", "2.png"],
                    "conversations": [
                        {"from": "user", "value": "<image><image>"},
                        {"from": "assistant", "value": "b"},
                    ],
                },
                {"image": None, "model": "", "conversations": [{"from": "human", "value": "Hi"}, ANSWER]},
            ],
        )
    )
    assert [sample.id for sample in samples] == ["a", "7", "2"]
    assert [sample.images for sample in samples] == [("x/1.png",), ("1.png", "2.png"), ()]
    assert samples[0].turns == (Turn("human", "<image>\nWhat digit?"), Turn("assistant", "two"))
    assert samples[1].turns == (Turn("human", "<image><image>"), Turn("assistant", "b"))


def test_jsonl_is_one_record_a_line_with_unicode_separators_inside_strings(tmp_path: Path) -> None:
    answer = {"from": "gpt", "value": "one\u2028line"}
    lines = [
        json.dumps(
            {"id": str(number), "conversations": [{"from": "human", "value": "Hi"}, answer]},
            ensure_ascii=False,
        )
        for number in range(3)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*lines[:2], "", lines[2]]) + "\n", encoding="utf-8")
    samples = read_samples(path)
    assert [sample.id for sample in samples] == ["0", "1", "2"]
    assert samples[2].turns[1].text == "one\u2028line"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"conversations": None}, ["conversations: found nothing", "give a list of turns"]),
        ({"conversations": []}, ["conversations: found []", "human first"]),
        ({"conversations": [QUESTION, "two"]}, ["conversations[1]: found 'two'", "'from' and 'value'"]),
        (
            {"conversations": [QUESTION, {"from": "bot", "value": "two"}]},
            ["conversations[1].from: found 'bot'", "use 'human' or 'gpt'"],
        ),
        (
            {"conversations": [QUESTION, {"from": ["gpt"], "value": "two"}]},
            ["conversations[1].from: found ['gpt']"],
        ),
        (
            {"conversations": [ANSWER, QUESTION]},
            ["conversations[0].from: found 'gpt'", "human turn belongs", "alternate"],
        ),
        (
            {"conversations": [QUESTION, QUESTION]},
            ["conversations[1].from: found 'human'", "assistant turn belongs"],
        ),
        (
            {"conversations": [QUESTION, ANSWER, {"from": "human", "value": "And?"}]},
            ["conversations[2]: found a human turn without an answer", "add the answer"],
        ),
        (
            {"conversations": [QUESTION, {"from": "gpt", "value": 2}]},
            ["conversations[1].value: found 2", "text"],
        ),
        (
            {"conversations": [{"from": "human", "value": "<image> and <image>"}, ANSWER]},
            ["found 2 <image> in the human turns and 1 in 'image'", "one <image> for each image"],
        ),
        ({"image": None}, ["found 1 <image> in the human turns and 0 in 'image'"]),
        (
            {"conversations": [QUESTION, {"from": "gpt", "value": "see <image>"}]},
            ["conversations[1].value: found <image> in an answer", "only human turns"],
        ),
        ({"image": "/etc/passwd"}, ["image: found '/etc/passwd'", "relative to that folder"]),
        ({"image": "a/../../b.png"}, ["image: found 'a/../../b.png'", "leaves the image folder"]),
        ({"image": ".."}, ["image: found '..'", "leaves the image folder"]),
        ({"image": ""}, ["image: found ''", "leave the field out"]),
        ({"image": "a\0.png"}, ["image: found 'a\\x00.png'"]),
        ({"image": {"name": "a.png"}}, ["image: found {'name': 'a.png'}"]),
        ({"image": [1]}, ["image[0]: found 1"]),
    ],
)
def test_a_bad_record_is_named_with_file_field_value_and_remedy(
    tmp_path: Path, change: dict[str, Any], expected: list[str]
) -> None:
    record = {"id": "bird", "image": "a.png", "conversations": [QUESTION, ANSWER]} | change
    message = message_for(tmp_path, record)
    for part in ["data.json: 1 of 1 records", "record 0 (id 'bird')", *expected]:
        assert part in message


def test_a_record_that_is_no_object_is_named_by_its_number(tmp_path: Path) -> None:
    assert "record 0: found a list" in message_for(tmp_path, [1])


def test_an_id_that_is_no_name_is_refused(tmp_path: Path) -> None:
    record = {"id": [1], "image": "a.png", "conversations": [QUESTION, ANSWER]}
    assert "record 0: id: found [1]" in message_for(tmp_path, record)


def test_a_path_that_stays_inside_may_hold_dots(tmp_path: Path) -> None:
    record = {"image": "a/../b..png", "conversations": [QUESTION, ANSWER]}
    assert read_samples(write(tmp_path, [record]))[0].images == ("a/../b..png",)


def test_all_bad_records_are_counted_and_ten_are_listed(tmp_path: Path) -> None:
    good = {"image": "a.png", "conversations": [QUESTION, ANSWER]}
    with pytest.raises(DataError) as caught:
        read_samples(write(tmp_path, [good, *({"id": f"bad{i}"} for i in range(12)), good]))
    message = str(caught.value)
    assert "12 of 14 records cannot be used (the first 10)" in message
    assert [f"bad{i}'" in message for i in range(12)] == [True] * 10 + [False] * 2


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("data.json", '{"a": 1}', "found a dict at the top"),
        ("data.json", "[]", "holds no record"),
        ("data.jsonl", "\n\n", "holds no record"),
        ("data.json", '[\n{"id": }]', "line 2, column 8 is not valid json"),
        ("data.jsonl", '{}\n{"id": }\n', "line 2, column 8 is not valid json"),
        ("data.json", "[" * 200_000, "nested too deeply"),
        ("data.csv", "", "found the suffix '.csv'"),
    ],
)
def test_a_file_that_is_no_llava_json_is_refused(tmp_path: Path, name: str, content: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match="data") as caught:
        read_samples(path)
    assert str(path) in str(caught.value) and expected in str(caught.value)


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_samples(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(DataError, match="UTF-8"):
        read_samples(tmp_path / "latin.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(DataError, match="found a folder"):
        read_samples(tmp_path / "folder.json")


def conversation(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": text} for speaker, text in turns]


def test_a_first_system_turn_is_the_samples_system_prompt(tmp_path: Path) -> None:
    turns = conversation(("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello"))
    (sample,) = read_samples(write(tmp_path, [{"conversations": turns}]))
    assert sample.system == "Be brief."
    assert sample.turns == (Turn("human", "Hi"), Turn("assistant", "Hello"))


def test_pictures_of_a_record_without_marks_stand_before_its_first_turn(tmp_path: Path) -> None:
    turns = conversation(("human", "What?"), ("gpt", "two"), ("human", "Sure?"), ("gpt", "yes"))
    one, two = read_samples(
        write(
            tmp_path,
            [{"image": "a.png", "conversations": turns}, {"images": ["a.png", "b.png"], "conversations": turns}],
        )
    )
    assert [turn.text for turn in one.turns[::2]] == ["<image>What?", "Sure?"]
    assert [turn.text for turn in two.turns[::2]] == ["<image><image>What?", "Sure?"]
    assert (one.images, two.images) == (("a.png",), ("a.png", "b.png"))


def test_the_messages_form_of_hugging_face_is_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Is "}, {"type": "image", "image": "a.png"}, {"type": "text", "text": " red?"}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "yes"},
    ]
    (sample,) = read_samples(write(tmp_path, [{"id": 3, "messages": messages}]))
    assert (sample.id, sample.system, sample.images) == ("3", "Be brief.", ("a.png",))
    assert sample.turns == (Turn("human", "Is <image> red?"), Turn("assistant", "yes"))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"conversations": conversation(("human", "Hi"), ("system", "Be brief."), ("gpt", "a"))},
            "conversations[1]: found a system turn; it goes before all others",
        ),
        (
            {"conversations": conversation(("system", "a"), ("system", "b"), ("human", "c"), ("gpt", "d"))},
            "conversations[1]: found a system turn",
        ),
        ({"conversations": conversation(("system", "a"))}, "found a system turn alone"),
        (
            {"conversations": conversation(("system", "a"), ("gpt", "b"))},
            "conversations[1].from: found 'gpt' where a human turn belongs",
        ),
        (
            {"conversations": conversation(("system", "a"), ("human", "b"), ("gpt", "c"), ("human", "d"))},
            "conversations[3]: found a human turn without an answer",
        ),
        (
            {"conversations": conversation(("system", "<image>"), ("human", "b"), ("gpt", "c")), "image": "a.png"},
            "conversations[0].value: found <image> in a system prompt",
        ),
        (
            {"image": "a.png", "images": ["b.png"], "conversations": conversation(("human", "b"), ("gpt", "c"))},
            "image: found both 'image' and 'images'",
        ),
        ({"images": [""], "conversations": conversation(("human", "b"), ("gpt", "c"))}, "images[0]: found ''"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: found 'tool'"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content: found 3"),
        (
            {"messages": [{"role": "user", "content": [{"type": "table"}]}]},
            "messages[0].content[0]: found {'type': 'table'}; a part is",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]},
            "messages: found 1 <image> in the human turns and 0 in 'image'",
        ),
    ],
)
def test_a_bad_system_prompt_or_message_is_named(tmp_path: Path, record: dict[str, Any], expected: str) -> None:
    assert expected in message_for(tmp_path, record)


def test_a_scan_gives_the_good_records_and_the_bad_ones(tmp_path: Path) -> None:
    good = {"conversations": conversation(("human", "Hi"), ("gpt", "Hello"))}
    samples, bad = scan_records(write(tmp_path, [{"id": 5}, good, 7]))
    assert [sample.id for sample in samples] == ["1"]
    assert [(record.number, record.id) for record in bad] == [(0, "5"), (2, None)]
    assert str(bad[1]).startswith("record 2: found a int")


PARTS = [
    {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}},
    {"type": "text", "text": " and "},
    {"type": "image", "image": "b.png"},
    {"type": "image_url", "image_url": "c.png"},
    {"type": "image", "bytes": None, "path": "d.png"},
    {"image": {"bytes": None, "path": "e.png"}},
    {"type": "image", "url": "f.png"},
    {"text": "?"},
]


def test_the_parts_of_openais_messages_and_of_chat_templates_are_read_in_order(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": PARTS}, {"role": "assistant", "content": [{"type": "text", "text": "no"}]}]
    (sample,) = read_samples(write(tmp_path, [{"messages": messages}]))
    assert sample.images == ("a.png", "b.png", "c.png", "d.png", "e.png", "f.png")
    assert sample.turns == (
        Turn("human", "<image> and <image><image><image><image><image>?"),
        Turn("assistant", "no"),
    )


def test_parts_without_a_path_stand_for_the_images_of_the_record(tmp_path: Path) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}, {"type": "image"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "two"}]
    (sample,) = read_samples(write(tmp_path, [{"images": ["a.png", "b.png"], "messages": messages}]))
    assert (sample.images, sample.turns[0].text) == (("a.png", "b.png"), "<image>What?<image>")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"video": "a.mp4", "conversations": [QUESTION, ANSWER]}, "video: found 'a.mp4'; only text and images"),
        ({"videos": ["a.mp4"], "conversations": [QUESTION, ANSWER]}, "videos: found ['a.mp4']"),
        ({"audio": "a.wav", "conversations": [QUESTION, ANSWER]}, "audio: found 'a.wav'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}]}]},
            "messages[0].content[0].type: found 'video'; only text and images",
        ),
    ],
)
def test_a_record_about_something_else_than_text_and_images_is_refused(
    tmp_path: Path, record: dict[str, Any], expected: str
) -> None:
    assert expected in message_for(tmp_path, record)


def test_an_empty_column_for_videos_does_no_harm(tmp_path: Path) -> None:
    record = {"video": None, "videos": [], "conversations": [{"from": "human", "value": "Hi"}, ANSWER]}
    assert len(read_samples(write(tmp_path, [record]))) == 1


def test_no_message_shows_more_than_80_characters_of_a_value(tmp_path: Path) -> None:
    long = "y" * 100_000
    turns = [{"from": "human", "value": "Hi"}, ANSWER]
    for record in (
        {"id": [long]},
        {"id": long, "conversations": None},
        {"conversations": long},
        {"conversations": [long, ANSWER]},
        {"conversations": [{"from": long, "value": ""}, ANSWER]},
        {"conversations": [{"from": "human", "value": {"a": [long]}}, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": long}]}]},
        {"conversations": turns, "loss_weight": long},
        {"conversations": turns, "video": long},
        {"conversations": turns, "image": long},
        {"conversations": turns, "image": "a/" * 40_000},
        {"conversations": turns, "image": [{"bytes": [long]}]},
        {"conversations": turns, "image": f"https://example.org/{long}"},
        {"conversations": turns, "image": f"data:image/png,{long}"},
    ):
        message = message_for(tmp_path, record)
        assert "y" * 81 not in message and "a/" * 41 not in message and len(message) < 800, message[:1000]


def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    for name, text in (("data.json", "[%s]"), ("data.jsonl", "%s"), ("data.json", '[{"id": 1},\n{"id": %s}]')):
        (tmp_path / name).write_text(text % ("1" * 5000))
        with pytest.raises(DataError, match=r"line \d begins a record with a number of thousands of digits; remove it"):
            read_samples(tmp_path / name)


def test_an_empty_answer_is_a_turn_without_loss(tmp_path: Path) -> None:
    turns = [QUESTION, {"from": "gpt", "value": " \n", "weight": 2}, {"from": "human", "value": "And?"}, ANSWER]
    (sample,) = read_samples(write(tmp_path, [{"image": "1.png", "conversations": turns}]))
    assert [turn.weight for turn in sample.turns[1::2]] == [0.0, 1.0]
