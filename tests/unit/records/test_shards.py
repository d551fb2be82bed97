"""Shows which shards and members are records, in which order their pictures come, and what is named as none."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from megatron_sts.errors import ConfigError, DataError
from megatron_sts.records import find_records

Members = list[tuple[str, bytes]]


def shard(path: Path, members: Members, **settings: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **settings) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            # A time with a fraction, as webdataset writes it, makes a header of its own in the pax format.
            member.size, member.mtime = len(content), 1.5
            tar.addfile(member, io.BytesIO(content))
    return path


def found(directory: Path) -> list[tuple[Any, list[bytes]]]:
    places = find_records(directory)
    read = [places.read(number) for number in range(len(places))]
    return [(value, [member.read() for member in members or ()]) for value, members in read]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_records_and_their_pictures_are_read_in_order(tmp_path: Path, kind: int) -> None:
    folder = "f" * 90
    shard(tmp_path / "b.tar", [("a.json", b"3")], format=kind)
    members = [
        ("0.jpg", b"one"),
        ("0.json", b'{"a": 1}'),
        (f"./{folder}/x.10.png", b"k"),
        *((f"./{folder}/x.{number}.PNG", str(number).encode()) for number in range(10)),
        (f"./{folder}/x.json", b"\xef\xbb\xbf2"),
    ]
    path = shard(tmp_path / "a.tar", members, format=kind)
    (tmp_path / "a.tar.idx").touch()
    assert found(tmp_path) == [
        ({"a": 1}, [b"one"]),
        (2, [*(str(number).encode() for number in range(10)), b"k"]),
        (3, []),
    ]
    picture = (find_records(tmp_path).read(0)[1] or ())[0]
    assert str(picture) == f"{path}: 0.jpg"


def test_folders_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in" / "data").mkdir(parents=True)
    (tmp_path / "in" / "data" / "0.json").write_text("1")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "in" / "data", arcname="data")
    assert found(tmp_path) == [(1, [])]


def test_of_energons_splits_the_part_for_training_is_read(tmp_path: Path) -> None:
    for number in range(12):
        shard(tmp_path / "parts" / f"s-{number:02d}.tar", [("0.json", str(number).encode())])
    split = tmp_path / ".nv-meta" / "split.yaml"
    split.parent.mkdir()
    split.write_text("split_parts:\n  train: ['parts/s-{08..10}.tar', parts/s-02.tar]\n  val: [parts/s-11.tar]\n")
    assert [value for value, _ in found(tmp_path)] == [8, 9, 10, 2]
    for text, expected in {
        "split_parts: {train: [parts/s-00.tar], val: []}\nexclude: [parts/s-00.tar]": "list the tar files of training",
        "split_parts: {val: []}": "list the tar files of training",
        "split_parts: {train: ['s-{0..999999999}.tar']}": "give a name, or one range",
        "split_parts: {train: [../outside.tar]}": "lies outside of",
        "split_parts: {train: [parts/s-99.tar]}": "no such file",
        "split_parts: {train: []}": "holds no tar file",
        "train: [!!python/object/apply:os.system ['true']]": "not readable as YAML",
    }.items():
        split.write_text(text)
        shard(tmp_path.parent / "outside.tar", [("0.json", b"1")])
        with pytest.raises((DataError, ConfigError), match=expected):
            find_records(tmp_path)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("0.jpg", b"x")], "member '0.jpg': no json of that name beside it"),
        ([("0.json", b"{"), ("0.jpg", b"x")], "member '0.json': line 1, column 2 is not valid json"),
        ([("0.json", b'"\xff"')], "member '0.json': cannot be read"),
        ([("0.json", b"1"), ("0.pickle", b"x")], "member '0.pickle': is of no use"),
        ([("0.json", b"1"), ("0.json", b"2")], "member '0.json': stands there twice"),
        ([("0.json", b"1"), ("0.jpg", b"x"), ("0.JPG", b"y")], "member '0.JPG': stands there twice"),
        ([("0.json", b"1"), ("1.json", b"2"), ("0.jpg", b"x")], "member '/0': stands there twice, apart"),
        ([("0.json", b"1"), ("0.jpg", b"x"), ("0.png", b"y")], "the pictures beside it are jpg, png; number them"),
        ([("0.json", b"1"), ("0.1.jpg", b"x"), ("0.2.jpg", b"y")], "the pictures beside it are 1.jpg, 2.jpg"),
        ([("README", b"x")], "member 'README': belongs to no record"),
        ([("._0.json", b"x")], r"member '._0.json': belongs to no record"),
        ([], "holds no record"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, members: Members, expected: str) -> None:
    shard(tmp_path / "a.tar", members)
    with pytest.raises(DataError) as caught:
        find_records(tmp_path)
    assert expected in str(caught.value)
    assert str(tmp_path / "a.tar" if members else tmp_path) in str(caught.value)


def test_what_is_no_directory_of_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        find_records(tmp_path / "none")
    with pytest.raises(DataError, match="holds no tar file"):
        find_records(tmp_path)
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(DataError, match=r"a\.tar\.gz: is no plain tar file"):
        find_records(tmp_path)


def test_a_shard_that_changed_is_named(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", [("0.json", b"1"), ("0.jpg", b"x")])
    places = find_records(tmp_path)
    _, members = places.read(0)
    shard(path, [("0.json", b"1"), ("0.jpg", b"longer" * 1000)])
    with pytest.raises(DataError, match=r"a\.tar: was changed while it was in use"):
        (members or ())[0].read()


def test_json_of_another_shape_is_passed_on(tmp_path: Path) -> None:
    shard(tmp_path / "a.tar", [("0.json", json.dumps([{"from": "human"}]).encode())])
    assert found(tmp_path) == [([{"from": "human"}], [])]


def test_progress_counts_the_megabytes_of_all_shards(tmp_path: Path) -> None:
    text = json.dumps("x" * 20_000).encode()
    for number in range(2):
        shard(tmp_path / f"{number}.tar", [(f"{record}.json", text) for record in range(100)])
    # A record takes 22,016 bytes with its headers, a shard of a hundred 2,211,840.
    told: list[tuple[int, int]] = []
    find_records(tmp_path, progress=lambda *megabytes: told.append(megabytes))
    # After 64, 128 and 192 records, and all.
    assert told == [(1, 5), (2, 5), (4, 5), (5, 5)]
