"""Shows which records of a data file are trained on, and what becomes of the others, with counts by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import TEMPLATES, PreparedSamples, allowed_bad_records, prepare_samples
from megatron_sts.data.unread_keys import UnreadKey
from megatron_sts.errors import DataError

Prepare = Callable[..., PreparedSamples]


def record(name: str, *answers: str, **keys: Any) -> dict[str, Any]:
    turns = [turn for text in answers for turn in ({"from": "human", "value": "Sure?"}, {"from": "gpt", "value": text})]
    return {"id": name, "conversations": turns} | keys


@pytest.fixture
def prepare(tmp_path: Path, image_folder: Path, word_tokenizer: PreTrainedTokenizerFast) -> Prepare:
    def make(records: list[Any] | None, max_tokens: int, max_bad: float = 0, **keys: Any) -> PreparedSamples:
        source = tmp_path / "data.json"
        if records is not None:
            source.write_text(json.dumps(records))
        arguments = (
            source,
            TEMPLATES["vicuna_v1"],
            word_tokenizer,
            "",
            image_folder,
            4,
            max_tokens,
            "drop_turns",
            max_bad,
        )
        return prepare_samples(tmp_path / "index.npz", *arguments, **keys)

    return make


MIXED = [
    record("good", "yes"),
    record("gone", "yes", image="none.png"),
    record("mute", ""),
    7,
    record("half", "", "yes"),
    record("long", "yes", "yes", "yes"),
    record("vast", "yes no two"),
    record("context", "yes", loss=False),
    record("seen", "yes", image="0.png"),
]


def test_records_are_set_aside_by_reason_and_the_others_keep_their_order(prepare: Prepare) -> None:
    found = prepare(MIXED, 11, 2)
    # <s> USER: Sure? ASSISTANT: yes </s> are 6 tokens, each further turn 5; "vast" has 8, "seen" 11 with its image.
    assert [sample.id for sample in found.samples] == ["good", "half", "long", "vast", "seen"]
    assert found.samples.numbers.tolist() == [0, 4, 5, 6, 8]
    # An empty answer is the space before its end, and neither is learnt.
    assert found.index.lengths(4).tolist() == [6, 11, 11, 8, 11] and found.index.supervised.tolist() == [2, 2, 4, 4, 2]
    assert [(bad.number, bad.id) for bad in found.bad] == [(1, "gone"), (3, None)]
    assert (found.silent, found.too_long, found.samples.turns) == ((2, 7), (), {5: 4})
    assert found.text(11) == (
        " (of 9 records, set aside 2 that cannot be used, 2 without anything to learn; "
        "1 without their last turns, to fit 11 tokens)"
    )
    again = prepare(None, 7, 2)
    assert [sample.id for sample in again.samples] == ["good", "long"] and again.too_long == (4, 6, 8)
    assert again.bad == found.bad and again.digest() != found.digest() == prepare(None, 11, 2).digest()


def test_more_bad_records_than_allowed_end_it_until_they_are_mended(prepare: Prepare, image_folder: Path) -> None:
    for limit in (1, 0.2):
        with pytest.raises(DataError) as caught:
            prepare(MIXED, 11, limit)
        message = str(caught.value)
        assert "2 of 9 records cannot be used: record 1 (id 'gone'): image none.png: no such file in" in message
        assert "set data.images to the folder that holds the images" in message
        assert f"data.max_bad_records, which is {limit:g} and allows 1" in message
    # Nothing of it was kept.
    (image_folder / "0.png").rename(image_folder / "none.png")
    with pytest.raises(DataError, match=r"record 8 \(id 'seen'\): image 0\.png: no such file"):
        prepare(None, 11, 1)
    found = prepare(None, 11, 0.25)
    assert [bad.number for bad in found.bad] == [3, 8]


def test_a_kept_index_still_obeys_a_lower_limit(prepare: Prepare) -> None:
    prepare(MIXED, 11, 2)
    with pytest.raises(DataError, match="2 of 9 records cannot be used"):
        prepare(None, 11, 0)


def test_the_first_ten_are_named(prepare: Prepare) -> None:
    with pytest.raises(DataError) as caught:
        prepare([record(f"r{number}", "yes", image=f"{number}.png") for number in range(20)], 11)
    message = str(caught.value)
    assert "12 of 20 records cannot be used: record 8 (id 'r8'): image 8.png" in message
    assert "'r17'" in message and "'r18'" not in message and "; and 2 more" in message


def test_data_of_which_nothing_is_left_is_refused(prepare: Prepare) -> None:
    with pytest.raises(DataError, match=r"no sample is left .*2 without anything to learn, 1 longer than 5 tokens\)"):
        prepare([record("a", ""), record("b", "yes", weight=0), record("c", "yes")], 5)


def test_a_share_is_taken_of_all_records() -> None:
    shares = [allowed_bad_records(*of) for of in ((0, 10), (0.01, 99), (0.01, 665298), (1, 10), (7, 10), (0.999, 10))]
    assert shares == [0, 0, 6652, 1, 7, 9]


def test_a_cached_index_is_still_checked_for_length_and_count(prepare: Prepare) -> None:
    counts: list[int] = []
    progress: list[tuple[str, int, int]] = []

    def start(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress.append((what, done, total))

    watched: dict[str, Any] = {"check_count": counts.append, "progress": start}
    assert prepare([record("a", "yes")], 6, **watched).index.lengths(4).tolist() == [6]
    assert [sample.turns[1].text for sample in prepare(None, 6, **watched).samples] == ["yes"]
    with pytest.raises(DataError, match=r"no sample is left to train on .*1 longer than 5 tokens"):
        prepare(None, 5, **watched)
    # Tokenized once only.
    assert progress == [("MB read", 1, 1), ("records measured", 1, 1)] and set(counts) == {1}


def test_videos_are_set_aside_and_keys_that_nothing_reads_are_told_at_every_start(prepare: Prepare) -> None:
    records = [record("a", "yes", tools="x"), record("clip", "yes", video="a.mp4"), record("b", "yes", tools="y")]
    for found in (prepare(records, 11, 1), prepare(None, 11, 1)):
        assert [sample.id for sample in found.samples] == ["a", "b"]
        assert [(bad.number, bad.id, bad.problem[:21]) for bad in found.bad] == [(1, "clip", "video: found 'a.mp4';")]
        assert found.unread == (UnreadKey("tools", 2, "a"),)
