"""Bytes of a file that stays as it was when records were found in it."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from megatron_sts.errors import DataError

# Where the header of a tar member has its name and, in front of it, the folders.
_NAME, _FOLDERS = slice(0, 100), slice(345, 500)
_HEADER_BYTES = 512


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file, and its size in bytes and time of change when it was first looked at.

    It is opened for every read: nothing is open in between, so that any number of files and of processes will do.
    """

    path: Path
    size: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path) -> "StoredFile":
        """A file as it is now. Raises DataError where it is none."""
        try:
            status = path.stat()
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; give the path of a data file") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); give a readable file") from error
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: found a folder, a pipe or a device; give a file")
        return cls(path, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Some of its bytes. Raises DataError where it cannot be read, or is no longer what it was."""
        try:
            with self.path.open("rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror}); put it back") from error
        if (status.st_size, status.st_mtime_ns) != (self.size, self.changed_ns) or len(content) != size:
            raise DataError(
                f"{self.path}: was changed while it was in use; leave data as it is while it is trained on, and start "
                "the run again"
            )
        return content


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar file. offset, size: where its bytes lie."""

    file: StoredFile
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes; DataError as `StoredFile.read`."""
        return self.file.read(self.offset, self.size)

    def __str__(self) -> str:
        """The file and the member's name, which is read from its header: told only where something is wrong."""
        header = self.file.read(self.offset - _HEADER_BYTES, _HEADER_BYTES)
        parts = [header[place].split(b"\0")[0].decode(errors="replace") for place in (_FOLDERS, _NAME)]
        return f"{self.file.path}: {'/'.join(part for part in parts if part)}"
