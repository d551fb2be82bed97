"""Shows that a cached index is used only for what it was made from, and that a damaged one is made again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from megatron_sts.data import TEMPLATES, Sample, SampleIndex, fingerprint, load_or_build, prepare_index
from megatron_sts.errors import DataError

VICUNA = TEMPLATES["vicuna_v1"]


def numbers(*values: int) -> SampleIndex:
    array = np.array(values, dtype=np.int32)
    return SampleIndex(array, array + 1, array + 2)


class Builder:
    """Builds a fixed index and counts how often it was asked."""

    def __init__(self, index: SampleIndex) -> None:
        self.index = index
        self.calls = 0

    def __call__(self) -> SampleIndex:
        self.calls += 1
        return self.index


def same(one: SampleIndex, other: SampleIndex) -> bool:
    fields = ("text_tokens", "images", "supervised")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in fields)


def test_the_second_call_reads_what_the_first_built(tmp_path: Path) -> None:
    build = Builder(numbers(1, 2, 3))
    path = tmp_path / "new" / "index.npz"
    assert same(load_or_build(path, "key", build), numbers(1, 2, 3))
    loaded = load_or_build(path, "key", build)
    assert build.calls == 1
    assert same(loaded, numbers(1, 2, 3)) and loaded.images.dtype == np.int32
    assert [file.name for file in path.parent.iterdir()] == ["index.npz"]


def test_another_key_builds_again_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "index.npz"
    load_or_build(path, "old", Builder(numbers(1)))
    assert same(load_or_build(path, "new", Builder(numbers(5))), numbers(5))
    untouched = Builder(numbers(9))
    assert same(load_or_build(path, "new", untouched), numbers(5)) and untouched.calls == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other arrays", "pickled"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "index.npz"
    load_or_build(path, "key", Builder(numbers(*range(500))))
    whole = path.read_bytes()
    if damage == "other arrays":
        np.savez(path, key=np.array("key"), text_tokens=np.zeros(2), images=np.zeros(3), supervised=np.zeros(2))
    elif damage == "pickled":
        unsafe = np.array([{}], dtype=object)
        np.savez(path, key=np.array("key"), text_tokens=unsafe, images=unsafe, supervised=unsafe)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "cut": whole[: len(whole) // 2],
                "flipped": whole[:1000] + bytes(64) + whole[1064:],
                "text": b"not an archive",
            }[damage]
        )
    again = Builder(numbers(7, 8))
    assert same(load_or_build(path, "key", again), numbers(7, 8))
    assert again.calls == 1
    assert same(load_or_build(path, "key", again), numbers(7, 8)) and again.calls == 1


def test_a_cache_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "index.npz"
    assert same(load_or_build(path, "key", Builder(numbers(1))), numbers(1))
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
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        fingerprint(tmp_path / "none.json", VICUNA, word_tokenizer, None, None)


def test_a_cached_index_is_still_checked_for_length(
    tmp_path: Path, word_tokenizer: PreTrainedTokenizerFast, make_sample: Callable[..., Sample]
) -> None:
    data, path = tmp_path / "data.json", tmp_path / "index.npz"
    data.write_text("[]")
    samples = [make_sample("Sure?", "yes", id="a")]
    progress: list[int] = []

    def prepare(max_tokens: int) -> SampleIndex:
        return prepare_index(
            path,
            data,
            samples,
            VICUNA,
            word_tokenizer,
            "",
            None,
            4,
            max_tokens,
            progress=lambda done, _: progress.append(done),
        ).index

    assert prepare(6).lengths(4).tolist() == [6]
    with pytest.raises(DataError, match=r"data\.max_tokens 5"):
        prepare(5)
    # Tokenized once only.
    assert progress == [1]
