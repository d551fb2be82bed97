"""Keeps on disk where the records lie and how long they are, so that a resume or another rank reads none of them."""

import hashlib
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.index import COUNTS, SampleIndex
from megatron_sts.data.stored_samples import BadRecord
from megatron_sts.data.templates import Template
from megatron_sts.data.unread_keys import UnreadKey
from megatron_sts.records import RecordPlaces, content_key

logger = logging.getLogger(__name__)

# Raised by whoever changes what an index holds or how it is counted.
_VERSION = 5
_ARRAYS = tuple(one.name for one in fields(SampleIndex))
# What numpy and zipfile raise on a file that is cut off or overwritten.
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class MeasuredRecords:
    """Where the records of some data lie, how long they are, and which of them cannot be used; these have zeros.

    unread: the keys of the others that nothing reads.
    """

    places: RecordPlaces
    index: SampleIndex
    bad: tuple[BadRecord, ...] = ()
    unread: tuple[UnreadKey, ...] = ()


def fingerprint(
    source: Path,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    images_root: Path | None,
) -> str:
    """A hash of all an index depends on: the data, see `content_key`, template, system prompt, tokenizer, folder.

    Raises:
        DataError: the data cannot be read.
    """
    parts = {
        "version": _VERSION,
        "data": content_key(source),
        "template": template.chat_template(system_prompt),
        "template_name": template.name,
        "tokenizer": _tokenizer_hash(tokenizer),
        "images_root": None if images_root is None else str(images_root.resolve()),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_or_build(
    path: Path,
    source: Path,
    key: str,
    build: Callable[[], MeasuredRecords],
    is_usable: Callable[[MeasuredRecords], bool] = lambda found: True,
) -> MeasuredRecords:
    """What is cached of `source` at `path` under `key`; where there is nothing or it is damaged, `build()` makes it.

    A cache that cannot be written is logged and does not stop the run. What is not usable is neither taken nor kept:
    images that were missing may be there by now.
    """
    found = _load(path, source, key)
    if found is None or not is_usable(found):
        found = build()
        if is_usable(found):
            _save(path, key, found)
    return found


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    # Vocabulary, normalization and special tokens; truncation and padding are set anew by every call.
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    relevant = {name: value for name, value in state.items() if name not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def _load(path: Path, source: Path, key: str) -> MeasuredRecords | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            arrays = {name: stored[name] for name in stored.files}
        places = RecordPlaces.from_arrays(source, arrays)
        index = SampleIndex(*(arrays[name] for name in _ARRAYS))
        bad = tuple(BadRecord(**record) for record in json.loads(str(arrays["bad"])))
        unread = tuple(UnreadKey(**key) for key in json.loads(str(arrays["unread"])))
    except _DAMAGE as error:
        logger.warning("the index cache %s is damaged (%s); building it again", path, error)
        return None
    shapes = {getattr(index, name).shape for name in COUNTS}
    images = (int(index.images.sum()),)
    is_whole = shapes == {(len(places),)} and index.image_positions.shape == images
    if not is_whole or any(arrays[name].dtype != np.int32 for name in _ARRAYS):
        logger.warning("the index cache %s holds no index; building it again", path)
        return None
    return MeasuredRecords(places, index, bad, unread)


def _save(path: Path, key: str, found: MeasuredRecords) -> None:
    temporary: str | None = None
    arrays: dict[str, Any] = {name: getattr(found.index, name) for name in _ARRAYS} | found.places.arrays()
    arrays["bad"] = np.array(json.dumps([asdict(record) for record in found.bad]))
    arrays["unread"] = np.array(json.dumps([asdict(key) for key in found.unread]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place: a rename is atomic within one file system only.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, key=np.array(key), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        logger.warning("the index cache %s cannot be written (%s); the next run builds it again", path, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
