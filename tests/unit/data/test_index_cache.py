"""Shows that a cached index is used only for what it was made from, and that a damaged one is made again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import TEMPLATES, BadRecord, SampleIndex, fingerprint, load_or_build
from megatron_sts.data.index_cache import MeasuredRecords
from megatron_sts.data.unread_keys import UnreadKey
from megatron_sts.errors import DataError
from megatron_sts.records import find_records

VICUNA = TEMPLATES["vicuna_v1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of three records."""
    path = tmp_path / "data.json"
    path.write_text("[1, 22, 333]")
    return path


def numbers(data: Path, *values: int) -> MeasuredRecords:
    rows = [(value, value + 1, value + 2, value + 3, *range(value + 1)) for value in values]
    unread = (UnreadKey("tools", values[0], "a"),)
    return MeasuredRecords(find_records(data), SampleIndex.from_rows(rows), unread=unread)


class Builder:
    """Builds fixed figures and counts how often it was asked."""

    def __init__(self, found: MeasuredRecords) -> None:
        self.found = found
        self.calls = 0

    def __call__(self) -> MeasuredRecords:
        self.calls += 1
        return self.found


def same(one: MeasuredRecords, other: MeasuredRecords) -> bool:
    names = ("text_tokens", "images", "supervised", "lacks_guide", "image_positions")
    return (
        [one.places.read(number) for number in range(3)] == [other.places.read(number) for number in range(3)]
        and (one.bad, one.unread) == (other.bad, other.unread)
        and all(np.array_equal(getattr(one.index, name), getattr(other.index, name)) for name in names)
    )


def test_the_second_call_reads_what_the_first_built(tmp_path: Path, data: Path) -> None:
    build = Builder(numbers(data, 1, 2, 3))
    path = tmp_path / "new" / "index.npz"
    assert same(load_or_build(path, data, "key", build), numbers(data, 1, 2, 3))
    loaded = load_or_build(path, data, "key", build)
    assert build.calls == 1
    assert same(loaded, numbers(data, 1, 2, 3)) and loaded.index.images.dtype == np.int32
    assert [file.name for file in path.parent.iterdir()] == ["index.npz"]


def test_another_key_builds_again_and_replaces(tmp_path: Path, data: Path) -> None:
    path = tmp_path / "index.npz"
    load_or_build(path, data, "old", Builder(numbers(data, 1, 2, 3)))
    assert same(load_or_build(path, data, "new", Builder(numbers(data, 5, 6, 7))), numbers(data, 5, 6, 7))
    untouched = Builder(numbers(data, 9, 9, 9))
    assert same(load_or_build(path, data, "new", untouched), numbers(data, 5, 6, 7)) and untouched.calls == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other arrays", "fewer lengths", "pickled"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, data: Path, damage: str) -> None:
    path = tmp_path / "index.npz"
    load_or_build(path, data, "key", Builder(numbers(data, 1, 2, 3)))
    whole = path.read_bytes()
    if damage == "other arrays":
        np.savez(path, key=np.array("key"), text_tokens=np.zeros(2), images=np.zeros(3), supervised=np.zeros(2))
    elif damage == "fewer lengths":
        load_or_build(path, data, "other", Builder(numbers(data, 1, 2)))
        path.write_bytes(_with_key(path, "key"))
    elif damage == "pickled":
        unsafe = np.array([{}], dtype=object)
        np.savez(path, key=np.array("key"), text_tokens=unsafe, images=unsafe, supervised=unsafe)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "cut": whole[: len(whole) // 2],
                "flipped": whole[:300] + bytes(64) + whole[364:],
                "text": b"not an archive",
            }[damage]
        )
    again = Builder(numbers(data, 7, 8, 9))
    assert same(load_or_build(path, data, "key", again), numbers(data, 7, 8, 9))
    assert again.calls == 1
    assert same(load_or_build(path, data, "key", again), numbers(data, 7, 8, 9)) and again.calls == 1


def _with_key(path: Path, key: str) -> bytes:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(path, **(arrays | {"key": np.array(key)}))
    return path.read_bytes()


def test_a_cache_that_cannot_be_written_is_logged(tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "index.npz"
    assert same(load_or_build(path, data, "key", Builder(numbers(data, 1, 2, 3))), numbers(data, 1, 2, 3))
    assert "cannot be written" in caplog.text


def test_the_fingerprint_changes_with_all_an_index_depends_on(
    tmp_path: Path, word_tokenizer: PreTrainedTokenizerFast, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text("[1]")
    two.write_text("[2]")
    plain = TEMPLATES["plain"]
    keys = [
        fingerprint(one, VICUNA, word_tokenizer, None, tmp_path),
        fingerprint(two, VICUNA, word_tokenizer, None, tmp_path),
        fingerprint(one, plain, word_tokenizer, None, tmp_path),
        fingerprint(one, VICUNA, byte_tokenizer, None, tmp_path),
        fingerprint(one, VICUNA, word_tokenizer, "", tmp_path),
        fingerprint(one, VICUNA, word_tokenizer, None, tmp_path / "images"),
        fingerprint(one, VICUNA, word_tokenizer, None, None),
    ]
    assert len(set(keys)) == len(keys)


def test_the_fingerprint_does_not_change_when_the_tokenizer_was_used(
    tmp_path: Path, word_tokenizer: PreTrainedTokenizerFast
) -> None:
    data = tmp_path / "data.json"
    data.write_text("[]")
    before = fingerprint(data, VICUNA, word_tokenizer, None, None)
    word_tokenizer(["two five", "yes"], padding=True, truncation=True, max_length=4)
    assert fingerprint(data, VICUNA, word_tokenizer, None, None) == before


def test_a_data_file_that_cannot_be_read_is_named(tmp_path: Path, word_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        fingerprint(tmp_path / "none.json", VICUNA, word_tokenizer, None, None)


def test_what_is_not_usable_is_built_again_and_not_kept(tmp_path: Path, data: Path) -> None:
    path = tmp_path / "index.npz"
    bad = replace(numbers(data, 1, 0, 3), bad=(BadRecord(1, "b", "image b.png: no such file"),))
    build, again = Builder(bad), Builder(numbers(data, 1, 2, 3))
    assert load_or_build(path, data, "key", build, lambda found: not found.bad) is bad and not path.exists()
    assert load_or_build(path, data, "key", build) is bad
    assert load_or_build(path, data, "key", again).bad == bad.bad and again.calls == 0
    assert load_or_build(path, data, "key", again, lambda found: not found.bad).bad == () and again.calls == 1
    assert load_or_build(path, data, "key", build).bad == () and build.calls == 2
