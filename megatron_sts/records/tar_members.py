"""Goes through the members of a tar file, written by whomever: none is extracted, little memory is used.

Refused by name: links, devices and sparse files, names that leave the folder, sizes that the file does not hold,
headers without end, compressed and damaged files.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_sts.errors import DataError, shown
from megatron_sts.records.stored_file import StoredFile

LARGEST_MEMBER_BYTES = 256 << 20
MOST_MEMBERS = 1 << 20
# What stands before a member's bytes: its header, and those that lengthen it.
_LARGEST_HEADER_BYTES = 1 << 18
# tar fills a file up to a multiple of what it writes at once.
_LARGEST_END_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar file: its name, and where its bytes lie."""

    name: str
    offset: int
    size: int


def tar_members(stored: StoredFile) -> Iterator[TarMember]:
    """The members of a tar file, in order. Raises DataError that names the file and the member."""
    path = stored.path
    try:
        with path.open("rb") as file:
            yield from _members(path, file, stored.size)
    except RecursionError:
        raise DataError(f"{path}: found headers nested without end; pack it again") from None
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(f"{path}: is no tar file that can be read ({error}); copy or pack it again") from error


def _members(path: Path, file: BinaryIO, size: int) -> Iterator[TarMember]:
    if file.read(2) == b"\x1f\x8b":
        raise DataError(f"{path}: is compressed, so that no record can be read by itself; unpack it with gunzip")
    headers = _Headers(path, file)
    headers.seek(0)
    tar = tarfile.open(fileobj=headers, mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
    count, before = 0, -1
    while True:
        headers.left = _LARGEST_HEADER_BYTES
        member = tar.next()
        # All of them would be kept otherwise.
        tar.members.clear()
        if member is None:
            break
        count += 1
        _check(path, member, size)
        if tar.offset <= before or count > MOST_MEMBERS:
            raise DataError(f"{path}: found more than {MOST_MEMBERS} members, or no end of them; pack it again")
        before = tar.offset
        if not member.isdir():
            yield TarMember(member.name, member.offset_data, member.size)
    _check_end(path, file, tar.offset, size)


def _check(path: Path, member: tarfile.TarInfo, size: int) -> None:
    name = f"{path}: member {shown(member.name)}"
    if not (member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.isdir()) or member.sparse is not None:
        kind = "link" if member.issym() or member.islnk() else "sparse file" if member.issparse() else "device"
        raise DataError(f"{name}: found a {kind}; a shard holds regular files alone: pack it again")
    if member.name.startswith("/") or ".." in member.name.split("/") or "\0" in member.name:
        raise DataError(f"{name}: leads out of the folder; name it without .. and without / in front")
    if not 0 <= member.size <= LARGEST_MEMBER_BYTES:
        raise DataError(f"{name}: is said to have {member.size} bytes, {LARGEST_MEMBER_BYTES} are allowed; remove it")
    if member.offset_data + member.size > size:
        raise DataError(f"{name}: ends beyond the file, which was cut off; copy or pack it again")


def _check_end(path: Path, file: BinaryIO, offset: int, size: int) -> None:
    """tarfile takes a damaged header for the end; here only what tar itself writes there is one."""
    file.seek(offset)
    end = file.read(min(size - offset, _LARGEST_END_BYTES))
    if len(end) < tarfile.BLOCKSIZE or offset + len(end) < size or any(end):
        raise DataError(
            f"{path}: found no member and no end of the tar file at byte {offset}: it is damaged, cut off, or made of "
            "several; copy or pack it again"
        )


class _Headers:
    """A file of which the headers of a member are read, and no more: tarfile would take in what a header asks for."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.left = _LARGEST_HEADER_BYTES
        self._path, self._file = path, file

    def read(self, size: int) -> bytes:
        self.left -= size
        if size < 0 or self.left < 0:
            raise DataError(f"{self._path}: found a header of more than {_LARGEST_HEADER_BYTES} bytes; pack it again")
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()
