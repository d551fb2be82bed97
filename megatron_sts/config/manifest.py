"""manifest.json: what a whole checkpoint consists of, by which damage to it is found."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_sts.errors import CheckpointError

MANIFEST_FILE = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size in bytes and SHA-256 of one file."""

    bytes: int
    sha256: str


def files_of(checkpoint: Path) -> list[str]:
    """Names of a checkpoint's files, in order, its manifest left out.

    Directories in it (an import's tokenizer and image processor) are the user's to change, and no part of it.
    """
    return sorted(path.name for path in checkpoint.iterdir() if path.is_file() and path.name != MANIFEST_FILE)


def entries_of(checkpoint: Path, names: Sequence[str]) -> dict[str, FileEntry]:
    """Size and hash of some files of a checkpoint, which are written through to the disk on the way."""
    return {name: _entry(checkpoint / name, write_through=True) for name in names}


def write_manifest(checkpoint: Path, entries: Mapping[str, FileEntry]) -> None:
    """Write the manifest of a checkpoint, the last of its files."""
    files = {name: asdict(entries[name]) for name in sorted(entries)}
    content = {"format": _FORMAT, "files": files, "sha256": _hash_of_entries(files)}
    file = checkpoint / MANIFEST_FILE
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_through(file)
    write_through(checkpoint)


def read_manifest(checkpoint: Path) -> dict[str, FileEntry]:
    """The manifest of a checkpoint; CheckpointError where it is missing or not one of ours."""
    file = checkpoint / MANIFEST_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}, this version reads {_FORMAT}")
        if content["sha256"] != _hash_of_entries(content["files"]):
            raise ValueError("its bytes are not those that were written (SHA-256)")
        return {
            str(name): FileEntry(int(entry["bytes"]), str(entry["sha256"])) for name, entry in content["files"].items()
        }
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing, so the checkpoint was not finished by this version") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error


def problems_of(checkpoint: Path, share: int = 0, shares: int = 1, hashes: bool = True) -> list[str]:
    """What is not as the manifest says, one message a file; empty where the checkpoint is whole.

    Every `shares`-th file is looked at, from number `share` on, so that ranks can share the work. Without `hashes`
    only names and sizes are compared, which reads no file.
    """
    try:
        manifest = read_manifest(checkpoint)
    except CheckpointError as error:
        return [str(error)]
    problems = []
    for name in sorted(manifest)[share::shares]:
        file, expected = checkpoint / name, manifest[name]
        try:
            size = file.stat().st_size
            if size != expected.bytes:
                problems.append(f"{file}: has {size:,} bytes, it was written with {expected.bytes:,}")
            elif hashes and _entry(file).sha256 != expected.sha256:
                problems.append(f"{file}: its bytes are not those that were written (SHA-256)")
        except FileNotFoundError:
            problems.append(f"{file}: missing")
        except OSError as error:
            problems.append(f"{file}: cannot be read ({error.strerror})")
    if share == 0:
        problems += [
            f"{checkpoint / name}: was not written with it" for name in files_of(checkpoint) if name not in manifest
        ]
    return problems


def write_through(path: Path) -> None:
    """Have the disk hold a file, or the names in a directory, before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash_of_entries(files: Mapping[str, object]) -> str:
    """The manifest's own hash, so that damage to it is not laid to the files it speaks of."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _entry(file: Path, write_through: bool = False) -> FileEntry:
    with file.open("rb") as stream:
        if write_through:
            os.fsync(stream.fileno())
        return FileEntry(os.fstat(stream.fileno()).st_size, hashlib.file_digest(stream, "sha256").hexdigest())
