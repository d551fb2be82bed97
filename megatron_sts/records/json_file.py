"""Goes through the records of a `.json` or `.jsonl` file, one at a time, and says where each lies."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from megatron_sts.errors import DataError

LARGEST_RECORD_BYTES = 64 << 20

_BLOCK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")


def scan_json(path: Path) -> Iterator[tuple[int, int, Any]]:
    """(first byte, bytes, value) of each record of a file with one list (.json) or one record a line (.jsonl).

    Raises DataError where the file cannot be read or is no such thing.
    """
    try:
        with path.open("rb") as file:
            yield from _lines(path, file) if path.suffix == ".jsonl" else _list(path, file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a readable UTF-8 text file") from error


def parse_record(where: str, text: str, first_line: int = 1) -> Any:
    """The value of a json text. Raises DataError that begins with `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise _invalid(where, error.msg, first_line + error.lineno - 1, error.colno) from error
    except RecursionError:
        raise DataError(f"{where}: found json nested too deeply; give a LLaVA json file") from None
    except ValueError as error:
        raise _no_number(where, first_line) from error


def _no_number(where: str, line: int) -> DataError:
    """Of a whole number that Python does not read, since its digits take time that grows with their square."""
    return DataError(f"{where}: line {line} begins a record with a number of thousands of digits; remove it")


def _invalid(where: str, problem: str, line: int, column: int) -> DataError:
    return DataError(f"{where}: line {line}, column {column} is not valid json ({problem}); mend that line")


def _too_long(path: Path, line: int) -> DataError:
    return DataError(f"{path}: line {line} begins a record of more than {LARGEST_RECORD_BYTES} bytes; remove it")


def _skip_byte_order_mark(file: BinaryIO) -> int:
    start = len(codecs.BOM_UTF8) if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else 0
    file.seek(start)
    return start


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, Any]]:
    offset, number = _skip_byte_order_mark(file), 0
    while line := file.readline(LARGEST_RECORD_BYTES + 1):
        number += 1
        if len(line) > LARGEST_RECORD_BYTES:
            raise _too_long(path, number)
        if line.strip():
            yield offset, len(line), parse_record(str(path), line.decode("utf-8"), number)
        offset += len(line)


def _list(path: Path, file: BinaryIO) -> Iterator[tuple[int, int, Any]]:
    text = _Window(path, file)
    if text.mark() != "[":
        _, _, value = text.value()
        raise DataError(
            f"{path}: found a {type(value).__name__} at the top; a .json file holds one list of records "
            "(one record a line is a .jsonl file)"
        )
    text.step()
    first = True
    while first or text.mark() != "]":
        if not first:
            if text.mark() != ",":
                raise text.problem("Expecting ',' delimiter")
            text.step()
        elif text.mark() == "]":
            break
        text.mark()
        yield text.value()
        first = False
    text.step()
    if text.mark():
        raise text.problem("Extra data")


class _Window:
    """The part of a json text around the place that is read; what lies behind it is let go."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder()
        self._text, self._place = "", 0
        # Of the first character of the text: its line and column from 1 on.
        self._line, self._column = 1, 1
        # Where in the file, in bytes, a character of the text lies, up to which they were counted.
        self._counted, self._offset = 0, _skip_byte_order_mark(file)

    def mark(self) -> str:
        """The next character that is no space; none at the end."""
        while True:
            space = _SPACE.match(self._text, self._place)
            assert space is not None
            self._place = space.end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read_on():
                return ""

    def step(self) -> None:
        """Over the next character."""
        self._place += 1

    def value(self) -> tuple[int, int, Any]:
        """(first byte, bytes, value) of the value that begins here."""
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._place)
            except RecursionError:
                raise DataError(f"{self._path}: found json nested too deeply; give a LLaVA json file") from None
            except json.JSONDecodeError as error:
                place = self._position(error.pos)
                if len(self._text) - self._place > LARGEST_RECORD_BYTES:
                    raise _too_long(self._path, self._position(self._place)[0]) from error
                # Perhaps the text goes on.
                if self._read_on():
                    continue
                raise _invalid(str(self._path), error.msg, *place) from error
            except ValueError as error:
                raise _no_number(str(self._path), self._position(self._place)[0]) from error
            # A number may go on where the text ends.
            if end == len(self._text) and self._read_on():
                continue
            offset = self._count_to(self._place)
            self._place = end
            return offset, self._count_to(end) - offset, value

    def problem(self, text: str) -> DataError:
        """An error that names the place that is read."""
        return _invalid(str(self._path), text, *self._position(self._place))

    def _position(self, place: int) -> tuple[int, int]:
        lines = self._text.count("\n", 0, place)
        if not lines:
            return self._line, self._column + place
        return self._line + lines, place - self._text.rfind("\n", 0, place)

    def _count_to(self, place: int) -> int:
        self._offset += len(self._text[self._counted : place].encode())
        self._counted = place
        return self._offset

    def _read_on(self) -> bool:
        """Lets go of what was read and reads twice as much as is left, so that no long record is begun too often."""
        self._count_to(self._place)
        self._line, self._column = self._position(self._place)
        self._text, self._place, self._counted = self._text[self._place :], 0, 0
        block = self._file.read(max(_BLOCK_BYTES, len(self._text)))
        self._text += self._utf8.decode(block, final=not block)
        return bool(block)
