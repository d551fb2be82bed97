"""Writes a data file and its images as webdataset shards, with the index that megatron-energon reads them by.

A shard is a tar file in which each record is a few members of one base name: `000000012.json`, the record as it was,
and `000000012.0.jpg`, `000000012.1.png`, the files of its images, byte for byte, in the record's order. An image that
stood inside the record becomes such a file, and its name stands in its place.
"""

import io
import json
import re
import shutil
import struct
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_sts.data.embedded_image import EmbeddedImage, Place
from megatron_sts.data.llava_json import sample_of_record
from megatron_sts.data.pictures import ImageFile, check_is_file, find_picture
from megatron_sts.data.stored_samples import read_samples
from megatron_sts.data.workers import Progress
from megatron_sts.errors import DataError

# How files begin, and what such a file's name ends in.
_SUFFIXES = {
    b"\xff\xd8": "jpg",
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"P5": "ppm",
    b"P6": "ppm",
}


@dataclass(frozen=True)
class Packed:
    """What was written. shards: file name and number of records of each."""

    shards: dict[str, int]
    images: int
    bytes: int


def pack(
    data_file: Path, images_root: Path | None, output: Path, shard_bytes: int, progress: Progress | None = None
) -> Packed:
    """Write the directory `output`, which must not be there yet; it appears only when it is whole.

    The same input gives the same bytes. A shard is closed with the record that makes it reach `shard_bytes`.

    Raises:
        DataError: `output` exists or cannot be written, some records are bad, or an image is missing, empty or outside
            `images_root`.
    """
    if output.exists():
        raise DataError(f"{output}: exists already; remove it or choose another directory")
    if data_file.is_dir():
        raise DataError(f"{data_file}: is a directory; give a .json or a .jsonl file")
    samples = read_samples(data_file)
    root = None if images_root is None else images_root.resolve()
    partial = output.with_name(f"{output.name}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        shards: dict[str, int] = {}
        images, written, shard = 0, 0, None
        for number in range(len(samples)):
            record, _ = samples.places.read(number)
            sample = sample_of_record(number, record)
            if root is None and any(isinstance(picture, str) for picture in sample.images):
                raise DataError(f"{data_file}: names images; give the folder that holds them (--images)")
            files = [find_picture(root, picture) for picture in sample.images]
            shard = shard or _Shard(partial / f"shard-{len(shards):06d}.tar")
            shard.add(f"{number:09d}", record, files)
            images += len(files)
            if shard.size >= shard_bytes or number + 1 == len(samples):
                shards[shard.path.name] = shard.close()
                written, shard = written + shard.path.stat().st_size, None
            if progress is not None:
                progress(number + 1, len(samples))
        _describe(partial, shards)
        partial.rename(output)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error}); choose a directory with room for it all") from error
    return Packed(shards, images, written)


class _Shard:
    """A tar file in the making, and the places where its records begin."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tar = tarfile.open(path, "x", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._starts: list[int] = []

    @property
    def size(self) -> int:
        """Bytes so far."""
        return int(self._tar.offset)

    def add(self, key: str, record: Any, images: Sequence[ImageFile]) -> None:
        """Add a record, which must be the caller's no longer: the names of images that stood inside it go in there."""
        members = []
        for number, file in enumerate(images):
            check_is_file(file)
            if isinstance(file, EmbeddedImage):
                content = file.read()
                suffix = next((suffix for head, suffix in _SUFFIXES.items() if content.startswith(head)), "image")
                _put(record, file.place, f"{key}.{number}.{suffix}")
            else:
                assert isinstance(file, Path)
                content, suffix = file.read_bytes(), re.sub(r"[^a-z0-9]", "", file.suffix.lower()) or "image"
            members.append((f"{key}.{number}.{suffix}", content))
        self._starts.append(self.size)
        self._member(f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
        for name, content in members:
            self._member(name, content)

    def close(self) -> int:
        """Finish the file and write its index; returns the number of records."""
        ends = self.size
        self._tar.close()
        # energon's index of a shard: where each record begins, and where the last one ends, as uint64.
        places = struct.pack(f"={len(self._starts) + 1}Q", *self._starts, ends)
        self.path.with_suffix(".tar.idx").write_bytes(places)
        return len(self._starts)

    def _member(self, name: str, content: bytes) -> None:
        # A fresh TarInfo has no time, owner or group of this machine.
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))


def _put(record: Any, place: Place, value: str) -> None:
    """Replace what stands at a place of a record."""
    *before, last = place
    for key in before:
        record = record[key]
    record[last] = value


def _describe(directory: Path, shards: dict[str, int]) -> None:
    """energon's folder of metadata: all records are for training, and are handed over part by part."""
    meta = directory / ".nv-meta"
    meta.mkdir()
    contents = {
        ".info.json": {"shard_counts": shards},
        # json is YAML.
        "split.yaml": {"split_parts": {"train": list(shards), "val": [], "test": []}, "exclude": []},
        "dataset.yaml": {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"},
    }
    for name, content in contents.items():
        (meta / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
