"""Keeps a sample index on disk, so that a resume or another rank need not tokenize the data again."""

import hashlib
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from megatron_sts.data.index import Progress, SampleIndex, measure_samples
from megatron_sts.data.lengths import Fitted, OverLong, fit_lengths
from megatron_sts.data.sample import Sample
from megatron_sts.data.templates import Template
from megatron_sts.errors import DataError

logger = logging.getLogger(__name__)

# Raised by whoever changes what an index holds or how it is counted.
_VERSION = 1
_ARRAYS = ("text_tokens", "images", "supervised")
# What numpy and zipfile raise on a file that is cut off or overwritten.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def prepare_index(
    path: Path,
    data_file: Path,
    samples: Sequence[Sample],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    images_root: Path | None,
    visual_tokens: int,
    max_tokens: int,
    over_long: OverLong = "error",
    progress: Progress | None = None,
) -> Fitted:
    """The `samples` of `data_file` that are trained on, and their index: from the cache at `path`, or built and left
    there.

    Lengths are fitted each time, since `visual_tokens` and `max_tokens` are not part of the cache's key; a
    changed compression does not tokenize again.

    Raises:
        DataError: as `measure_samples` and `fit_lengths`.
    """
    key = fingerprint(data_file, template, tokenizer, system_prompt, images_root)
    index = load_or_build(
        path, key, lambda: measure_samples(samples, template, tokenizer, system_prompt, images_root, progress)
    )
    fitted = fit_lengths(index, samples, template, tokenizer, system_prompt, visual_tokens, max_tokens, over_long)
    if not len(fitted.samples):
        raise DataError(f"{data_file}: no sample fits into data.max_tokens {max_tokens}; raise it")
    return fitted


def fingerprint(
    data_file: Path,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    system_prompt: str | None,
    images_root: Path | None,
) -> str:
    """A hash of all an index depends on: the data file's content, template, system prompt, tokenizer, folder.

    Raises:
        DataError: the data file cannot be read.
    """
    try:
        with data_file.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{data_file}: cannot be read ({error}); give a readable data file") from error
    parts = {
        "version": _VERSION,
        "data": content,
        "template": template.chat_template(system_prompt),
        "template_name": template.name,
        "tokenizer": _tokenizer_hash(tokenizer),
        "images_root": None if images_root is None else str(images_root.resolve()),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_or_build(path: Path, key: str, build: Callable[[], SampleIndex]) -> SampleIndex:
    """The index cached at `path` under `key`; where there is none or a damaged one, `build()` makes it.

    A cache that cannot be written is logged and does not stop the run.
    """
    index = _load(path, key)
    if index is None:
        index = build()
        _save(path, key, index)
    return index


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    # Vocabulary, normalization and special tokens; truncation and padding are set anew by every call.
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    relevant = {name: value for name, value in state.items() if name not in ("truncation", "padding")}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def _load(path: Path, key: str) -> SampleIndex | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            arrays = {name: stored[name] for name in _ARRAYS}
    except _DAMAGE as error:
        logger.warning("the index cache %s is damaged (%s); building it again", path, error)
        return None
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or any(array.ndim != 1 or array.dtype != np.int32 for array in arrays.values()):
        logger.warning("the index cache %s holds no index; building it again", path)
        return None
    return SampleIndex(**arrays)


def _save(path: Path, key: str, index: SampleIndex) -> None:
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place: a rename is atomic within one file system only.
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, key=np.array(key), **{name: getattr(index, name) for name in _ARRAYS})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        logger.warning("the index cache %s cannot be written (%s); the next run builds it again", path, error)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
