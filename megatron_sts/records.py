"""Reads the records of a data file as plain json; free of torch, for training and for planning."""

import json
from pathlib import Path
from typing import Any

from megatron_sts.errors import DataError


def read_records(path: Path) -> list[Any]:
    """The records of a `.json` file (one list) or a `.jsonl` file (one record a line), at least one, unchecked.

    Contract: training has one sample for each of them, so a plan counts them without looking inside.
    Raises DataError where the file cannot be read or holds none.
    """
    records = _records(path)
    if not records:
        raise DataError(f"{path}: holds no record; give a file with at least one conversation")
    return records


def _records(path: Path) -> list[Any]:
    if path.suffix not in (".json", ".jsonl"):
        raise DataError(f"{path}: found the suffix {path.suffix!r}; give a .json or a .jsonl file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of a LLaVA json file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give a readable UTF-8 text file") from error
    if path.suffix == ".jsonl":
        # str.splitlines would also cut at characters such as U+2028, which json allows inside a string.
        lines = enumerate(text.split("\n"), start=1)
        return [_parse(path, line, first_line=number) for number, line in lines if line.strip()]
    records = _parse(path, text, first_line=1)
    if not isinstance(records, list):
        raise DataError(
            f"{path}: found a {type(records).__name__} at the top; a .json file holds one list of records "
            "(one record a line is a .jsonl file)"
        )
    return records


def _parse(path: Path, text: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise DataError(
            f"{path}: line {line}, column {error.colno} is not valid json ({error.msg}); mend that line"
        ) from error
    except RecursionError:
        raise DataError(f"{path}: found json nested too deeply; give a LLaVA json file") from None
