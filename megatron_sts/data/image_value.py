"""What a record gives as an image: a path, or the image itself as a data url, as base64 or as bytes."""

import posixpath
import re
from typing import Any

from megatron_sts.data.embedded_image import LARGEST_EMBEDDED_BYTES, EmbeddedImage, Place, field_of
from megatron_sts.data.sample import RecordError
from megatron_sts.errors import shown

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Base64 of what files of the formats that are read begin with: JPEG, PNG, GIF, WebP, BMP, TIFF, PPM. No path of an
# image goes on for so long without a dot.
_BASE64_OF_AN_IMAGE = re.compile(
    r"(?:/9j/|iVBORw0KGg|R0lGOD|UklGR|Qk[A-Za-z0-9+/]{6}AAA|SUkqA|TU0AK|UD[UY][Kg0J])[A-Za-z0-9+/]{24}"
)
_DATA_URL_HEAD = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_LONGEST_PATH, _LONGEST_NAME = 4095, 255


def image_of(place: Place, value: Any) -> str | EmbeddedImage:
    """The path below the image folder, or the image inside the record, that stands at a place of a record.

    A mapping is one of `bytes` and `path`, as tables of Hugging Face's datasets have images, or of `url`, as OpenAI's
    messages have. Nothing is decoded here. Raises RecordError for anything else, a url of another machine among it.
    """
    if isinstance(value, dict):
        key = next((key for key in ("bytes", "path", "url") if value.get(key) is not None), None)
        if key is None or isinstance(value[key], dict):
            raise _no_image(place, value)
        place, value = (*place, key), value[key]
        if key == "bytes":
            return _of_bytes(place, value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise _no_image(place, value)
    if value.startswith("data:"):
        if not _DATA_URL_HEAD.match(value):
            raise RecordError(f"{field_of(place)}: found {shown(value)}; write a data url as data:image/png;base64,...")
        return _embedded(place, value)
    if _BASE64_OF_AN_IMAGE.match(value):
        return _embedded(place, value)
    _check_path(place, value)
    return value


def _of_bytes(place: Place, value: Any) -> EmbeddedImage:
    if isinstance(value, str) and value:
        return _embedded(place, value)
    if isinstance(value, list) and all(isinstance(one, int) and 0 <= one < 256 for one in value):
        return _embedded(place, bytes(value))
    raise RecordError(
        f"{field_of(place)}: found {shown(value)}; write the bytes of the image file in base64, or as numbers from 0 "
        "to 255"
    )


def _embedded(place: Place, content: str | bytes) -> EmbeddedImage:
    size = len(content) * 3 // 4 if isinstance(content, str) else len(content)
    if size > LARGEST_EMBEDDED_BYTES:
        raise RecordError(
            f"{field_of(place)}: found an image of {size} bytes inside the record, {LARGEST_EMBEDDED_BYTES} are "
            "allowed; make it smaller, or give the path of a file"
        )
    return EmbeddedImage(place, content)


def _check_path(place: Place, path: str) -> None:
    if "://" in path and _URL.match(path):
        raise RecordError(
            f"{field_of(place)}: found the url {shown(path)}; nothing is downloaded in training: download the image "
            "and give its path below the image folder"
        )
    if len(path) > _LONGEST_NAME and (len(path) > _LONGEST_PATH or max(map(len, path.split("/"))) > _LONGEST_NAME):
        raise RecordError(
            f"{field_of(place)}: found {shown(path)}, {len(path):,} characters that are neither a path nor base64 of "
            "an image; give one of the two"
        )
    if path.startswith(("/", "\\")) or posixpath.normpath(path).split("/")[0] == "..":
        raise RecordError(
            f"{field_of(place)}: found {shown(path)}, which leaves the image folder; give a path relative to that "
            "folder"
        )


def _no_image(place: Place, value: Any) -> RecordError:
    return RecordError(
        f"{field_of(place)}: found {shown(value)}; give a path, a data url, base64 or {{'bytes': ..., 'path': ...}}, a "
        "list of these, or leave the field out"
    )
