"""Shows that images inside records are told from paths, read as files are, and that urls are never fetched."""

import base64
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from megatron_sts.data import ImageReader, PixelCache, load_image_processor
from megatron_sts.data.embedded_image import LARGEST_EMBEDDED_BYTES, EmbeddedImage
from megatron_sts.data.image_value import image_of
from megatron_sts.data.pictures import read_picture
from megatron_sts.data.sample import RecordError
from megatron_sts.errors import DataError

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")


def image_bytes(image_format: str = "PNG", size: tuple[int, int] = (6, 4)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (200, 30, 10)).save(content, image_format)
    return content.getvalue()


def encoded(image_format: str = "PNG") -> str:
    return base64.b64encode(image_bytes(image_format)).decode()


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_is_known_by_its_base64(image_format: str) -> None:
    found = image_of(("image",), encoded(image_format))
    assert isinstance(found, EmbeddedImage) and found.read() == image_bytes(image_format)


URL_SAFE = base64.urlsafe_b64encode(image_bytes()).decode()
assert "_" in URL_SAFE or "-" in URL_SAFE
WRITINGS: list[Any] = [
    f"data:image/png;base64,{encoded()}",
    f"data:;base64,{encoded()}",
    f"data:image/png;charset=x;BASE64,{encoded()}",
    encoded(),
    encoded().rstrip("="),
    "\n".join(encoded()[start : start + 76] for start in range(0, len(encoded()), 76)),
    {"bytes": encoded(), "path": None},
    {"bytes": encoded(), "path": "somewhere/else.png"},
    {"bytes": URL_SAFE},
    {"bytes": list(image_bytes()), "path": "a.png"},
    {"url": f"data:image/png;base64,{encoded()}"},
]


@pytest.mark.parametrize("value", WRITINGS)
def test_every_writing_of_an_image_gives_its_pixels(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes())
    found = image_of(("image",), value)
    assert isinstance(found, EmbeddedImage)
    reader = ImageReader(load_image_processor(None, "clip", 28), tmp_path)
    assert torch.equal(reader.read(found), reader.read("a.png"))


@pytest.mark.parametrize("value", ["a.png", {"path": "a.png"}, {"bytes": None, "path": "a.png"}, {"url": "a.png"}])
def test_a_path_in_a_mapping_is_a_path(value: Any) -> None:
    assert image_of(("image",), value) == "a.png"


@pytest.mark.parametrize("path", ["Qk/9j/images/of/a/long/folder/name/image.bmp", "iVBORw0KGgo/x.png", "R0lGOD.gif"])
def test_a_path_that_begins_as_base64_is_a_path(path: str) -> None:
    assert image_of(("image",), path) == path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://example.org/a.png", "found the url 'https://example.org/a.png'; nothing is downloaded in training"),
        ("HTTP://example.org/a.png", "found the url"),
        ("s3://bucket/a.png", "found the url"),
        ({"url": "gs://bucket/a.png"}, r"images\[2\].url: found the url"),
        ("file:///etc/passwd", "found the url"),
        ("data:image/png,%89PNG", "write a data url as data:image/png;base64"),
        ({"bytes": [1, 300]}, r"images\[2\].bytes: found \[1, 300\]; write the bytes"),
        ({"bytes": 5}, "bytes: found 5; write the bytes of the image file in base64"),
        ({"bytes": ""}, "bytes: found ''"),
        ({"path": {"path": "a.png"}}, "found {'path': {'path': 'a.png'}}; give a path, a data url"),
        ({"bytes": None, "path": None}, "found {'bytes': None, 'path': None}"),
        ("x" * 256, "256 characters that are neither a path nor base64 of an image"),
        ("/9j/a.jpg", "leaves the image folder"),
    ],
)
def test_what_is_no_image_is_refused_with_its_place(value: Any, expected: str) -> None:
    with pytest.raises(RecordError, match=expected) as caught:
        image_of(("images", 2), value)
    assert str(caught.value).startswith("images[2]") and len(str(caught.value)) < 300


def test_an_image_that_is_too_large_is_refused_unread() -> None:
    with pytest.raises(RecordError, match=r"image: found an image of \d+ bytes inside the record"):
        image_of(("image",), "data:image/png;base64," + "A" * (LARGEST_EMBEDDED_BYTES * 4 // 3 + 8))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded()[:-8] + "!!!!", "is no base64 that can be decoded"),
        (f"data:image/png;base64,{encoded()[:40]}", r"cannot be decoded \("),
        ("data:image/png;base64,", "no picture in one of the formats"),
        (f"data:image/png;base64,{base64.b64encode(b'<svg/>').decode()}", "no picture in one of the formats"),
        ({"bytes": "b'\\x89PNG'"}, "is no base64 that can be decoded"),
        (base64.b64encode(image_bytes(size=(400, 1))).decode(), "400 x 1 pixels"),
    ],
)
def test_a_damaged_image_is_refused_when_it_is_read(content: Any, expected: str) -> None:
    found = image_of(("messages", 0, "content", 1, "image_url", "url"), content)
    assert isinstance(found, EmbeddedImage)
    with pytest.raises(DataError, match=expected) as caught:
        read_picture(found)
    assert str(caught.value).startswith("messages[0].content[1].image_url.url")
    assert len(str(caught.value)) < 400


def test_the_cache_holds_the_pixels_of_an_image_but_not_its_text() -> None:
    cache, reads = PixelCache(1 << 20), []

    def read(picture: Any) -> torch.Tensor:
        reads.append(picture)
        return torch.ones(3, 2, 2)

    for content in ("a" * 50, "a" * 50, "b" * 50):
        cache.get(EmbeddedImage(("image",), content), read)
    assert [picture.content[0] for picture in reads] == ["a", "b"]
    assert all(not isinstance(name, EmbeddedImage) for name in cache._pictures)
