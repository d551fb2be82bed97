"""Goes through the records of a directory of webdataset shards, as `tools/prepare_data.py pack` and others write them.

A record is neighbouring members of one name up to its first dot: `000000012.json`, and beside it the files of its
pictures: `000000012.jpg`, or `000000012.0.jpg`, `000000012.1.png` and so on.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from megatron_sts.config.yaml_values import read_mapping
from megatron_sts.errors import DataError, shown, shown_path
from megatron_sts.records.json_file import LARGEST_RECORD_BYTES, parse_record
from megatron_sts.records.stored_file import StoredFile
from megatron_sts.records.tar_members import TarMember, tar_members

_PICTURE = re.compile(r"(?:(\d{1,6})\.)?(jpg|jpeg|png|webp|gif|bmp|ppm|tif|tiff|image)", re.IGNORECASE)
_NUMBERED = re.compile(r"(\d{1,6})\.[a-z0-9]+", re.IGNORECASE)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WANTED = (
    "a record is NAME.json, and beside it NAME.jpg (or png, webp, ...) or NAME.0.jpg, NAME.1.jpg, ... for its pictures"
)
# energon's lists of what belongs to training; the second name is of its newer versions.
_SPLITS = (".nv-meta/split.yaml", ".nv-meta/split.json")
_MOST_SHARDS = 100_000


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A record of a shard. json, pictures: where its members lie, the pictures in their order."""

    value: Any
    json: TarMember
    pictures: tuple[TarMember, ...]


def shard_files(directory: Path) -> list[StoredFile]:
    """The tar files of a directory, by name; with energon's list of splits, those of its part for training.

    Raises DataError where there are none, or where one is compressed or lies outside the directory.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory; give one of shards (tar files), or a .json or a .jsonl file")
    listed = _training_part(directory)
    try:
        found = sorted(directory.glob("*.tar*")) if listed is None else [directory / name for name in listed]
    except OSError as error:
        raise DataError(f"{directory}: cannot be read ({error.strerror}); give a readable directory") from error
    root = directory.resolve()
    files = []
    for path in found:
        if path.name.endswith(".tar.idx"):
            continue
        if path.suffix != ".tar":
            raise DataError(
                f"{path}: is no plain tar file, in which each record can be read alone; unpack it to .tar, or remove it"
            )
        if not path.resolve().is_relative_to(root):
            raise DataError(f"{path}: lies outside of {directory}; move it there")
        files.append(StoredFile.of(path))
    if not files:
        raise DataError(
            f"{directory}: holds no tar file; give a directory that `tools/prepare_data.py pack` wrote, or a .json or "
            "a .jsonl file"
        )
    return files


def _training_part(directory: Path) -> list[str] | None:
    split = next((directory / name for name in _SPLITS if (directory / name).is_file()), None)
    if split is None:
        return None
    values = read_mapping(split, "the list of splits")
    parts = values.get("split_parts")
    names = parts.get("train") if isinstance(parts, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or values.get("exclude"):
        raise DataError(
            f"{split}: found split_parts.train {shown(names)} and exclude {shown(values.get('exclude'))}; "
            "list the tar files of training under split_parts.train and exclude none"
        )
    return [expanded for name in names for expanded in _expanded(split, name)]


def _expanded(split: Path, name: str) -> list[str]:
    """`shard-{000..002}.tar` is three names."""
    found = _RANGE.search(name)
    if found is None:
        return [name]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MOST_SHARDS or _RANGE.search(name, found.end()):
        raise DataError(f"{split}: found {shown(name)}; give a name, or one range such as shard-{{000..099}}.tar")
    width = len(found[1])
    return [f"{name[: found.start()]}{number:0{width}d}{name[found.end() :]}" for number in range(first, last + 1)]


def scan_shard(file: StoredFile) -> Iterator[ShardRecord]:
    """The records of a shard, in order. Raises DataError that names the file and the member that is no part of one."""
    seen: set[str] = set()
    for key, members in groupby(tar_members(file), key=lambda member: _key(file.path, member)):
        if key in seen:
            raise DataError(
                f"{file.path}: member {shown(key)}: stands there twice, apart; {_WANTED}, one after another"
            )
        seen.add(key)
        yield _record(file, key, list(members))


def _key(path: Path, member: TarMember) -> str:
    folder, _, name = member.name.rpartition("/")
    base, dot, _ = name.partition(".")
    if not base or not dot:
        raise DataError(f"{path}: member {shown(member.name)}: belongs to no record; {_WANTED}")
    return f"{folder}/{base}"


def _record(file: StoredFile, key: str, members: list[TarMember]) -> ShardRecord:
    parts: dict[str, TarMember] = {}
    for member in members:
        part = member.name.rpartition("/")[2].partition(".")[2].lower()
        if part in parts:
            raise DataError(f"{file.path}: member {shown(member.name)}: stands there twice; keep one")
        if part != "json" and not (_PICTURE.fullmatch(part) or _NUMBERED.fullmatch(part)):
            raise DataError(f"{file.path}: member {shown(member.name)}: is of no use; {_WANTED}")
        parts[part] = member
    text = parts.pop("json", None)
    if text is None:
        raise DataError(f"{file.path}: member {shown(members[0].name)}: no json of that name beside it; {_WANTED}")
    where = f"{file.path}: member {shown(text.name)}"
    if text.size > LARGEST_RECORD_BYTES:
        raise DataError(f"{where}: a record of {text.size} bytes, {LARGEST_RECORD_BYTES} are allowed; remove it")
    try:
        value = parse_record(where, file.read(text.offset, text.size).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: cannot be read ({error}); write it in UTF-8") from error
    return ShardRecord(value, text, _in_order(where, parts))


def _in_order(where: str, pictures: dict[str, TarMember]) -> tuple[TarMember, ...]:
    if len(pictures) < 2:
        return tuple(pictures.values())
    numbers = {part: int(found[1]) for part in pictures if (found := _NUMBERED.fullmatch(part))}
    order = sorted(numbers, key=lambda part: numbers[part])
    if [numbers[part] for part in order] != list(range(len(pictures))):
        raise DataError(f"{where}: the pictures beside it are {shown_path(', '.join(pictures))}; number them from 0 on")
    return tuple(pictures[part] for part in order)
