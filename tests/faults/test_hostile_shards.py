"""Tar files of others that lie, lead elsewhere or never end: refused by name, nothing written, little memory used."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_sts.data import ImageReader, load_image_processor, read_samples
from megatron_sts.errors import MegatronStsError
from megatron_sts.records import tar_members
from tests.faults.bounds import within
from tests.faults.test_hostile_files import _png

RECORD = json.dumps([{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "two"}]).encode()


def _member(name: str, content: bytes = b"x", kind: bytes = tarfile.REGTYPE, **settings: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    for key, value in settings.items():
        setattr(info, key, value)
    padding = bytes(-len(content) % 512)
    return info.tobuf(tarfile.GNU_FORMAT) + content + padding


def _pax(records: bytes, size: int | None = None) -> bytes:
    return _member("pax", records, tarfile.XHDTYPE, **({} if size is None else {"size": size}))


def _keyword(name: str, value: str) -> bytes:
    body = f" {name}={value}\n"
    length = len(body) + 2
    assert length < 100
    return f"{length}{body}".encode()


def _size_field(header: bytes, size: bytes) -> bytes:
    """A header with other bytes for its size, and the checksum that belongs to it."""
    changed = header[:124] + size.ljust(12, b"\0") + header[136:]
    changed = changed[:148] + b" " * 8 + changed[156:]
    return changed[:148] + f"{sum(changed[:512]):06o}\0 ".encode() + changed[156:]


GOOD = _member("0.json", RECORD)
END = bytes(1024)

REFUSED: dict[str, tuple[bytes, str]] = {
    "symbolic link": (GOOD + _member("0.jpg", b"", tarfile.SYMTYPE, linkname="/etc/passwd") + END, "found a link"),
    "hard link": (GOOD + _member("0.jpg", b"", tarfile.LNKTYPE, linkname="0.json") + END, "found a link"),
    "device": (GOOD + _member("0.jpg", b"", tarfile.CHRTYPE) + END, "found a device"),
    "pipe": (GOOD + _member("0.jpg", b"", tarfile.FIFOTYPE) + END, "found a device"),
    "unknown kind": (GOOD + _member("0.jpg", b"", b"Z") + END, "found a device"),
    "../": (_member("../0.json", RECORD) + END, "leads out of the folder"),
    "a/../../": (_member("a/../../0.json", RECORD) + END, "leads out of the folder"),
    "absolute": (_member("/0.json", RECORD) + END, "leads out of the folder"),
    "name by pax": (_pax(_keyword("path", "/etc/x.json")) + GOOD + END, "leads out of the folder"),
    "size beyond the file": (_size_field(GOOD[:512], b"00001000000"), "ends beyond the file"),
    "size by pax": (_pax(_keyword("size", "99999")) + GOOD[:1024] + END, "ends beyond the file"),
    "huge size": (_size_field(GOOD[:512], b"77777777777") + END, "is said to have 8589934591 bytes"),
    "negative size": (GOOD + _size_field(GOOD[:512], b"\xff" * 11 + b"\x00") + END, "0.json|no member and no end"),
    "negative size by pax": (GOOD + _pax(_keyword("size", "-1024")) + GOOD + END, "0.json|no member and no end"),
    "sparse": (GOOD + _pax(_keyword("GNU.sparse.map", "0,1") + _keyword("GNU.sparse.size", "9")) + GOOD, "sparse file"),
    "old sparse": (GOOD + _member("0.jpg", b"", tarfile.GNUTYPE_SPARSE) + END, "sparse file"),
    "cut in a member": (GOOD + _member("0.jpg", bytes(2000))[:1000], "ends beyond the file"),
    "cut in a header": (GOOD + _member("0.jpg")[:300], "no member and no end"),
    "without an end": (GOOD, "no member and no end"),
    "damaged header": (GOOD + b"\x01" * 512 + END, "no member and no end"),
    "another tar behind the end": (GOOD + END + GOOD + END, "no member and no end"),
    "twice the same name": (GOOD + GOOD + END, "stands there twice"),
    "the same record again": (GOOD + _member("1.json", RECORD) + _member("0.jpg") + END, "stands there twice, apart"),
    "empty file": (b"", "no tar file"),
    "no tar": (b"GIF89a" * 1000, "no tar file"),
    "compressed": (gzip.compress(bytes(64 << 20)), "is compressed"),
    "pickle": (GOOD + _member("0.pkl") + END, "is of no use"),
    "long name without end": (
        _member("@LongLink", b"n" * 300_000, tarfile.GNUTYPE_LONGNAME) + GOOD + END,
        "a header of",
    ),
    "pax headers without end": (_pax(_keyword("comment", "x")) * 2000 + GOOD + END, "a header of"),
    "pax header of 8 GB": (_pax(b"", size=8 << 30) + GOOD + END, "a header of"),
}


@pytest.mark.fault(
    "tar shards with links, devices, names that lead out, sparse or lying sizes, without end: refused by name"
)
@pytest.mark.parametrize("case", REFUSED)
def test_hostile_tar_is_refused_by_name(tmp_path, case):
    content, expected = REFUSED[case]
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a.tar").write_bytes(content)
    with pytest.raises(MegatronStsError, match=rf"a\.tar: .*({expected})"):
        read_samples(tmp_path / "shards")
    assert [path.name for path in tmp_path.rglob("*")] == ["shards", "a.tar"]


@pytest.mark.fault("tar shards of millions of members or sparse on the disk: refused in less than 2 s and 100 MB")
def test_endless_tar_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "MOST_MEMBERS", 5000)
    (tmp_path / "a.tar").write_bytes(b"".join(_member(f"{number}.json", b"") for number in range(5001)) + END)
    _refused_in_time(tmp_path, "no end of them|not valid json")

    def sparse(write: Callable[[io.BufferedWriter], object]) -> None:
        with (tmp_path / "a.tar").open("wb") as file:
            file.truncate(16 << 30)
            write(file)

    sparse(lambda file: file.write(_pax(b"", size=8 << 30)))
    _refused_in_time(tmp_path, "a header of")
    sparse(lambda file: file.write(_member("0.jpg", b"", tarfile.GNUTYPE_SPARSE, size=1)))
    _refused_in_time(tmp_path, "sparse file")
    sparse(lambda file: file.write(GOOD))
    _refused_in_time(tmp_path, "no member and no end")
    sparse(lambda file: file.write(_size_field(GOOD[:512], b"77777777777")))
    _refused_in_time(tmp_path, "is said to have")


def _refused_in_time(directory: Path, expected: str) -> None:
    with within(2, 100 << 10), pytest.raises(MegatronStsError, match=rf"a\.tar.*({expected})"):
        read_samples(directory)


@pytest.mark.fault("a PNG of 30,000 x 30,000 pixels in a shard: refused by name in less than 2 s and 1 GB")
def test_picture_in_a_shard_that_would_fill_the_memory_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(GOOD + _member("0.png", _png(30_000, 30_000)) + END)
    (sample,) = read_samples(tmp_path)
    with within(2, 1 << 20), pytest.raises(MegatronStsError, match=r"a\.tar: 0\.png: .*900000000 pixels"):
        ImageReader(load_image_processor(None, "clip", 56), None).read(sample.images[0])
